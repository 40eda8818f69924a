"""A certificate's name and dates, and what they tell of the clock of the machine that looks at them."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509

from fedstream.checkup.runner import Result, failed, ok, warning
from fedstream.tls import SERVER_NAME

TOLERANCE = timedelta(seconds=60)
"""By which clocks may differ without a word: certificates are dated back by more, and logs can still be compared."""

SOON = timedelta(days=30)
"""How long before its end a certificate is worth a warning: time to tell every site."""


_SET_CLOCK = "Set the clock of this machine"


def judge_validity(certificate: bytes, now: datetime, renewal: str, if_too_early: str = _SET_CLOCK) -> Result:
    """Whether a PEM certificate is valid at `now`; `renewal` is the sentence on how to get a new one."""
    begins, ends = validity(certificate)
    if now > ends:
        return failed(f"it ended on {ends:%Y-%m-%d}", renewal)
    if now < begins:
        return failed(f"it begins only at {begins:%Y-%m-%d %H:%M} UTC", if_too_early)
    if ends - now < SOON:
        return warning(f"it ends on {ends:%Y-%m-%d}, in {(ends - now).days} days", renewal)
    return ok(f"valid until {ends:%Y-%m-%d}")


def judge_clock(certificate: bytes | None, now: datetime, ahead_seconds: float | None) -> Result:
    """What can be told of the local clock: by how much it is before the server's, or else by the certificate's dates.

    The protocol itself sends spans and never compares clocks; certificates and what people read do.
    """
    begins, ends = validity(certificate) if certificate is not None else (now, now)
    if begins <= now <= ends:
        return _judge_difference(now, ahead_seconds)
    side = "before" if now < begins else "after"
    found = f"{now:%Y-%m-%d %H:%M} UTC is {side} the certificate's dates ({begins:%Y-%m-%d} to {ends:%Y-%m-%d})"
    return failed(found, f"{_SET_CLOCK}, or, if it is right, ask the coordinator for a new certificate")


def _judge_difference(now: datetime, ahead_seconds: float | None) -> Result:
    if ahead_seconds is None:
        return ok(f"{now:%Y-%m-%d %H:%M} UTC; the server does not say its own time")
    distance = timedelta(seconds=abs(round(ahead_seconds)))
    if distance <= TOLERANCE:
        return ok(f"{now:%Y-%m-%d %H:%M} UTC, within {max(1, distance.seconds)} s of the server's clock")
    side = "ahead of" if ahead_seconds > 0 else "behind"
    advice = "Set the clock of this machine, or, if it is right, tell the coordinator: certificates and logs go by it"
    return warning(f"{distance} (h:mm:ss) {side} the server's clock", advice)


def judge_name(certificate: bytes) -> Result:
    """Whether it carries the name that every client looks for, whatever address was dialled."""
    if SERVER_NAME in names(certificate):
        return ok(f"it names {SERVER_NAME}")
    found = f"it does not name {SERVER_NAME}, but {', '.join(names(certificate)) or 'nothing'}"
    return failed(found, "It was not made by fedserver: check the address, or whether a proxy ends TLS on the way")


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """From when to when a PEM certificate is valid, in UTC, both ends included."""
    parsed = x509.load_pem_x509_certificate(certificate)
    return parsed.not_valid_before_utc, parsed.not_valid_after_utc


def names(certificate: bytes) -> list[str]:
    """The DNS names in a PEM certificate."""
    extensions = x509.load_pem_x509_certificate(certificate).extensions
    try:
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return alternatives.get_values_for_type(x509.DNSName)

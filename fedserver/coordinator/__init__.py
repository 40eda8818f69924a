"""Who takes part and how a round goes: pure state machines, without grpc, disk or a clock of their own.

Instants are seconds of one monotonic clock that the caller reads; every method that depends on time is given `now`.
"""

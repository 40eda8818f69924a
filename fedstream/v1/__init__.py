"""Stubs generated from `protos/fedstream/v1` by `make protos`; never edited by hand."""

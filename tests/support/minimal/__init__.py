"""The client of docs/write-a-client.md, written out, and the same with one rule broken at a time."""

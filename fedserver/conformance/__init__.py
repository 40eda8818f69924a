"""Whether a client, in any language, keeps to docs/protocol.md: a server that plays scenes with it and watches.

Each scene starts the client's command anew, beside a scripted server that tells the truth except where the scene says
otherwise. What the client does is held against the document's rules, by their ids.
"""

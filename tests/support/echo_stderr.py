"""A process that writes to standard error as a library would, and as the program does, while handshakes are watched."""

from __future__ import annotations

import os
import sys
import time

from fedserver.enrolment.handshakes import watching_handshakes

if __name__ == "__main__":
    with watching_handshakes():
        os.write(2, b"from a library\n")
        time.sleep(0.5)
        print("from this program", file=sys.stderr)
    print("after it", file=sys.stderr)

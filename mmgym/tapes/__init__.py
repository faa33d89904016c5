"""Recorded markets: files of several vendors as one level-1 tape, what is wrong with it, and its sessions.

`read_tape` reads; `Selection` says what is used; `check_level1` is the one checker of all calibrations. The formats are
in `mmgym.tapes.formats`, each in a file of its own.
"""

from mmgym.tapes.checker import CheckedTape, check_level1
from mmgym.tapes.findings import Finding
from mmgym.tapes.recording import Recording, read_recording, read_tape
from mmgym.tapes.selection import Selection

__all__ = ["CheckedTape", "Finding", "Recording", "Selection", "check_level1", "read_recording", "read_tape"]

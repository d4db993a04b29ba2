"""Run a program that refuses to run as root, without a system user, a chown of parent folders or opened permissions.

    python -I -S unprivileged.py DIRECTORY PROGRAM ARGUMENT...

First choice: a user namespace in which root appears as another user; DIRECTORY and every folder above it stay as they
are. Where the kernel or a container forbids that: another user id that keeps the one capability of passing closed
folders, and DIRECTORY is handed to that user. This file is a script of its own, since a user namespace may be entered
only by a process with a single thread, and since it must start fast.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522

REFUSED = 97
"""Exit code when this machine allows neither way."""


def main(arguments: list[str]) -> None:
    """Become another user in one of the two ways, then become the program."""
    directory, program = Path(arguments[0]), arguments[1:]
    user = ordinary_user()
    # Before: inside the namespace files of another run's user could neither be told apart nor given back.
    _give(directory, user_id=0, group_id=0)
    if not _enter_namespace(user) and not _change_user(user, directory):
        sys.stderr.write("neither a user namespace nor a change of user is allowed here\n")
        raise SystemExit(REFUSED)
    os.execv(program[0], program)


def ordinary_user() -> pwd.struct_passwd:
    """A user with a name that is not root: `initdb` looks the name up."""
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    if not users:
        sys.stderr.write("this machine knows no user but root\n")
        raise SystemExit(REFUSED)
    return users[0]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _enter_namespace(user: pwd.struct_passwd) -> bool:
    if _libc().unshare(_CLONE_NEWUSER) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user.pw_uid} 0 1")
        Path("/proc/self/gid_map").write_text(f"{user.pw_gid} 0 1")
    except OSError as error:
        sys.stderr.write(f"the user namespace cannot be set up: {error}\n")
        raise SystemExit(REFUSED) from error
    return os.geteuid() == user.pw_uid


def _change_user(user: pwd.struct_passwd, directory: Path) -> bool:
    try:
        _give(directory, user_id=user.pw_uid, group_id=user.pw_gid)
        if _libc().prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0:
            return False
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        sys.stderr.write(f"the user cannot be changed: {error}\n")
        return False
    mask = 1 << _CAP_DAC_OVERRIDE
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    wanted = struct.pack("IIIIII", mask, mask, mask, 0, 0, 0)
    kept = _libc().capset(header, wanted) == 0
    return kept and _libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0) == 0


def _give(directory: Path, *, user_id: int, group_id: int) -> None:
    if directory.stat().st_uid == user_id:
        return
    for folder, _, files in os.walk(directory):
        os.chown(folder, user_id, group_id)
        for name in files:
            os.chown(Path(folder, name), user_id, group_id, follow_symlinks=False)


if __name__ == "__main__":
    main(sys.argv[1:])

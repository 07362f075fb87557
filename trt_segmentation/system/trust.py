# SPDX-License-Identifier: Apache-2.0
"""
Directories whose content is run as code: who else could change what is in them.

The rule is that of sshd for a user's keys: each directory from the root down belongs to this user
or to root, and nobody else can write to it. A directory with the sticky bit, such as /tmp, lets
nobody else replace what is in it, so it may be one of the parents; so may one that the owner's own
group can write to, of which nobody else is a member: that is what Ubuntu's umask of 002 makes.
"""

from __future__ import annotations

from collections.abc import Mapping
import grp
import os
from pathlib import Path
import pwd
import shlex
import stat

from trt_segmentation.errors import InputError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def make_private(path: Path) -> None:
    """
    Make a directory and its missing parents, for this user alone whatever the umask is.

    :raises OSError: if it cannot be made
    """
    for missing in reversed([part for part in (path, *path.parents) if not part.is_dir()]):
        try:
            missing.mkdir(mode=0o700)
        except FileExistsError:  # another process has made it
            if not missing.is_dir():
                raise
        else:
            missing.chmod(0o700)


def check_directory(path: Path, what: str) -> None:
    """
    Refuse a directory that somebody else can change, or replace by another.

    :param what: names it in the message
    :raises InputError: naming the first part of the path that somebody else owns or can write to
    :raises OSError: if a part of it cannot be looked at
    """
    absolute = Path(os.path.abspath(path))
    real = Path(os.path.realpath(path))
    parts = dict.fromkeys([*reversed(absolute.parents), absolute, *reversed(real.parents), real])
    for part in parts:
        found = part.lstat()
        last = part in (absolute, real)
        if found.st_uid not in (os.geteuid(), 0) and (last or found.st_uid != _outside()):
            raise InputError(
                f'{what}: {_where(part, last)}belongs to another user (uid {found.st_uid}), who '
                f'can change what is in it, and a plan can carry code; expected uid '
                f'{os.geteuid()} or root; ' + (
                    f'run: chown {os.geteuid()} {shlex.quote(str(part))}, or ' if last else '')
                + 'name another with --store'
            )
        if stat.S_ISLNK(found.st_mode):
            continue  # its own mode says nothing; what it leads to is looked at too
        if last and not stat.S_ISDIR(found.st_mode):
            raise InputError(f'{what}: not a directory; name another with --store')
        if found.st_mode & _OTHERS and (last or not _is_harmless(found)):
            raise InputError(
                f'{what}: {_where(part, last)}others can write to it (mode '
                f'{stat.S_IMODE(found.st_mode):04o}), and a plan can carry code; run: chmod '
                f'{"700" if last else "go-w"} {shlex.quote(str(part))}'
            )


def read(directory: Path, limits: Mapping[str, int | None]) -> dict[str, bytes]:
    """
    Return what is in files of one directory, by name; all are of the same state of it.

    Neither the directory nor a file may be a link, or somebody else's to change.

    :param limits: by name the most bytes that a file may have; None for any number
    :raises InputError: if one cannot be read, is too large, or can be changed by others
    """
    path = directory
    found = {}
    try:
        inside = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_own(os.fstat(inside), directory, '700')
            for name, limit in limits.items():
                path = directory / name
                # Not blocking, for the case that it is a pipe.
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                               dir_fd=inside)
                with open(file, 'rb') as stream:
                    status = os.fstat(file)
                    if not stat.S_ISREG(status.st_mode):
                        raise InputError(f'{path}: not a plain file')
                    _check_own(status, path, '600')
                    if limit is not None and status.st_size > limit:
                        raise InputError(f'{path}: {status.st_size} bytes; expected at most '
                                         f'{limit}')
                    found[name] = stream.read()
        finally:
            os.close(inside)
    except OSError as error:
        link = ' (it is a link)' if path.is_symlink() else ''
        raise InputError(f'{path}: cannot be read: {error.strerror}{link}') from None
    return found


def _check_own(found: os.stat_result, path: Path, mode: str) -> None:
    """Refuse what belongs to another user, or can be written by others."""
    if found.st_uid not in (os.geteuid(), 0):
        raise InputError(f'{path}: belongs to another user (uid {found.st_uid}), and a plan can '
                         'carry code; remove it and build anew')
    if found.st_mode & _OTHERS:
        raise InputError(f'{path}: others can write to it (mode '
                         f'{stat.S_IMODE(found.st_mode):04o}), and a plan can carry code; run: '
                         f'chmod {mode} {shlex.quote(str(path))}')


def _is_harmless(found: os.stat_result) -> bool:
    """Tell whether a directory that others write to lets only owners replace what is in it."""
    if found.st_mode & stat.S_ISVTX:
        return True
    if found.st_mode & stat.S_IWOTH:
        return False
    try:
        owner, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    return (group.gr_name == owner.pw_name and owner.pw_gid == found.st_gid
            and set(group.gr_mem) <= {owner.pw_name})


def _outside() -> int | None:
    """
    Return the user id that stands for all users outside, where this process is shut in.

    In a user namespace (`unshare --user`, some sandboxes) root itself, who owns `/`, is one of
    those that have no id of their own inside.
    """
    try:
        inside, outside, count = map(int, Path('/proc/self/uid_map').read_text().split()[:3])
        if (inside, outside) == (0, 0) and count > 1 << 31:
            return None
        return int(Path('/proc/sys/kernel/overflowuid').read_text())
    except (OSError, ValueError):
        return None


def _where(part: Path, last: bool) -> str:
    """Return the name of a part of a path, unless the message has it already."""
    return '' if last else f'its parent {part} '

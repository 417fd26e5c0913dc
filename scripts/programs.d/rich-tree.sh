#!/usr/bin/env bash
# rich-tree.sh DIR: makes a tree with everything in it that an archiver can carry: owners, modes, special bits, times
# to the nanosecond, hard links, symlinks, sparse files, extended attributes, ACLs, FIFOs, sockets, devices, odd names.
set -euo pipefail
umask 022
mkdir -p "$1"
cd "$1"
mkdir -p sub/deep empty many
seq 1 10000 >numbers
printf 'no newline' >sub/short
: >sub/deep/nothing
ln numbers sub/hard
ln numbers sub/deep/harder
ln -s numbers soft
ln soft softer
ln -s /nowhere/at/all dangling
ln -s ../sub sub/loop
truncate -s 5M sparse
printf data | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
truncate -s 20M huge
printf end >>huge
printf begin | dd of=huge bs=1 conv=notrunc status=none
truncate -s 1M hollow
mkfifo fifo
mknod null c 1 3
mknod block b 7 200
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
printf x >'name with blanks'
printf y >$'two\nlines'
printf z >$'\377\376'
printf long >"$(printf 'n%.0s' {1..255})"
for ((n = 0; n < 100; n++)); do echo "$n" >"many/file-$n"; done
deep=.
for ((n = 0; n < 20; n++)); do deep=$deep/d$n; done
mkdir -p "$deep"
echo deep >"$deep/file"
printf '#!/bin/sh\n' >setuid
chown 12:34 setuid
chmod 6755 setuid
cp /bin/true capable
setcap cap_net_raw+ep capable
chmod 2775 sub
chmod 1777 empty
chown -h 56:78 soft
chmod 000 sub/short
setfattr -n user.colour -v blue numbers
setfattr -n user.empty numbers
setfattr -n user.binary -v 0x00ff0a numbers
setfattr -n trusted.t -v 1 sub
setfattr -h -n trusted.symlink -v 2 dangling
setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' x)" sub/deep/nothing
setfacl -m u:65534:rw,g:42:r,m::r numbers
setfacl -m u:1:rwx,d:u:1:rwx,d:g:2:r-x,d:o::- sub/deep
find . -depth -exec touch -h -d '1999-12-31 23:59:59.123456789' {} +
touch -d '1960-01-02 03:04:05.678901234' sub/deep/nothing
touch -h -d '2100-01-02 03:04:05.000000001' soft

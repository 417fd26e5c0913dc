function __fish_loopfs_needs_command
    set -l cmd (commandline -opc)
    if contains -- "$cmd[2]" list status unmount doctor upgrade top
        echo $cmd[2]
        return 1
    end
    return 0
end

function __fish_loopfs_using_subcommand
    set -l cmd (__fish_loopfs_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c loopfs -n "__fish_loopfs_needs_command" -s o -d 'Mount options, separated by commas; a later one wins. MOUNT OPTIONS in loopfs(1) has the list' -r
complete -c loopfs -n "__fish_loopfs_needs_command" -l io -d 'How open files are read and written [default: auto]' -r -f -a "auto\t'By the kernel itself in SRC where that can be had, else as cached'
passthrough\t'By the kernel itself; refused where that can\'t be had'
cached\t'By requests, with the kernel\'s page cache; files are opened without a request where changes in SRC are followed: the fastest for trees that are mostly read'
direct\t'By requests, without it'"
complete -c loopfs -n "__fish_loopfs_needs_command" -l cache -d 'What makes the kernel ask again for names and attributes that it was told of [default: auto]' -r -f -a "auto\t'Changes in SRC where they can be followed, else as ttl'
coherent\t'Changes in SRC; refused where they can\'t be followed'
ttl\t'The passing of entry_timeout and attr_timeout'
none\t'It always asks'"
complete -c loopfs -n "__fish_loopfs_needs_command" -l threads -d 'Serve with N threads, 1 to 64 [default: one for each CPU, at least 2, at most 4]' -r
complete -c loopfs -n "__fish_loopfs_needs_command" -l drain-timeout -d 'How long open files may delay the end that a signal asks for [default: 10]' -r
complete -c loopfs -n "__fish_loopfs_needs_command" -l lazy-timeout -d 'How long open files may go on working after an unmount from outside with -l or -z [default: never cut off]' -r
complete -c loopfs -n "__fish_loopfs_needs_command" -l supervise -d 'Have a second process start the one that serves again if it dies, unnoticed by programs [default: off; on if no MODE is given]' -r -f -a "off\t'A mount is dead when the process that serves it has died'
on\t'It is started again where that can be done, else the mount is taken down'
require\t'It is started again; refused where that can\'t be done'"
complete -c loopfs -n "__fish_loopfs_needs_command" -l restart-limit -d 'With --supervise: give up if it has died more than N times in a minute [default: 10]' -r
complete -c loopfs -n "__fish_loopfs_needs_command" -l log-format -d 'The shape of messages on stderr' -r -f -a "auto\t'As journal if stderr is the journal\'s, else as text'
text\t'Lines for people'
journal\t'Lines with a syslog priority in front'
json\t'One JSON object a line'"
complete -c loopfs -n "__fish_loopfs_needs_command" -s r -l read-only -d 'Nothing can be changed through the mount; wins over \'-o rw\''
complete -c loopfs -n "__fish_loopfs_needs_command" -l one-file-system -d 'Don\'t cross into other file systems that are mounted below SRC: where one is mounted, show the directory that it covers'
complete -c loopfs -n "__fish_loopfs_needs_command" -l forward-locks -d 'Take locks (flock, fcntl) in SRC too, so that programs that work on SRC itself and those that work on MNT see each other\'s'
complete -c loopfs -n "__fish_loopfs_needs_command" -l low-latency -d 'Keep CPUs from sleeping deeply while requests come, so that each is answered sooner; takes power, and root'
complete -c loopfs -n "__fish_loopfs_needs_command" -l mkdir -d 'Make MNT first, and remove it at the end'
complete -c loopfs -n "__fish_loopfs_needs_command" -l replace-stale -d 'If a dead mount is found at MNT ("Transport endpoint is not connected"), detach it first'
complete -c loopfs -n "__fish_loopfs_needs_command" -s f -l foreground -d 'Stay in the foreground instead of returning when the mount can be used'
complete -c loopfs -n "__fish_loopfs_needs_command" -s v -l verbose -d 'Say more: once for what loopfs does, twice for each request; without it a program in the background only warns. RUST_LOG wins over it'
complete -c loopfs -n "__fish_loopfs_needs_command" -s d -l debug -d 'The same as -f -vv'
complete -c loopfs -n "__fish_loopfs_needs_command" -s h -l help -d 'Print this help'
complete -c loopfs -n "__fish_loopfs_needs_command" -s V -l version -d 'Print the version'
complete -c loopfs -n "__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1" -a "list" -d 'Show the loopfs mounts of this machine'
complete -c loopfs -n "__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1" -a "status" -d 'Show how a mount is: requests and how long they take, open files and who holds them, cache, memory'
complete -c loopfs -n "__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1" -a "unmount" -d 'Unmount, when nobody uses the mount any more'
complete -c loopfs -n "__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1" -a "doctor" -d 'Find what is wrong with the system or a mount, and the commands that mend it; the status is 2 if something is'
complete -c loopfs -n "__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1" -a "upgrade" -d 'Have the program that is installed by now go on with a mount served with --supervise, without unmounting'
complete -c loopfs -n "__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1" -a "top" -d 'Watch what is done with a mount: operations a second, how long they take, the busiest files and processes'
complete -c loopfs -n "__fish_loopfs_using_subcommand list" -l json -d 'Print JSON, for programs'
complete -c loopfs -n "__fish_loopfs_using_subcommand list" -s h -l help -d 'Print this help'
complete -c loopfs -n "__fish_loopfs_using_subcommand status" -l json -d 'Print JSON, for programs'
complete -c loopfs -n "__fish_loopfs_using_subcommand status" -l prometheus -d 'Print the text format of Prometheus, for a textfile collector'
complete -c loopfs -n "__fish_loopfs_using_subcommand status" -s h -l help -d 'Print this help'
complete -c loopfs -n "__fish_loopfs_using_subcommand unmount" -s t -l timeout -d 'How long to wait for those who use it [default: 10, or 0 with --lazy or --force]' -r
complete -c loopfs -n "__fish_loopfs_using_subcommand unmount" -s l -l lazy -d 'When time is up: unmount all the same, what is open goes on working until it is closed'
complete -c loopfs -n "__fish_loopfs_using_subcommand unmount" -s f -l force -d 'When time is up: unmount all the same, and cut off what is open'
complete -c loopfs -n "__fish_loopfs_using_subcommand unmount" -l if-dead -d 'Only if nobody serves it any more: a mount whose daemon is there is left alone'
complete -c loopfs -n "__fish_loopfs_using_subcommand unmount" -s h -l help -d 'Print this help'
complete -c loopfs -n "__fish_loopfs_using_subcommand doctor" -l json -d 'Print JSON, for programs'
complete -c loopfs -n "__fish_loopfs_using_subcommand doctor" -s h -l help -d 'Print this help'
complete -c loopfs -n "__fish_loopfs_using_subcommand upgrade" -s h -l help -d 'Print this help'
complete -c loopfs -n "__fish_loopfs_using_subcommand top" -s h -l help -d 'Print this help'

# Completion for qcowfs in bash.

_qcowfs() {
    local commands='mount umount list info inspect journal check create map resize snapshot sync dedup commit config loop'
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]}
    COMPREPLY=()

    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$current")
        return
    fi

    case $previous in
        -f | --format | -F | --backing-format)
            mapfile -t COMPREPLY < <(compgen -W 'qcow2 add-cow vhdx raw' -- "$current")
            return
            ;;
        -o | --uid | --gid | --mode | --threads | --cache-size) return ;;
    esac

    local options=--help
    case $command in
        mount)
            options="$options -w --writable --overlay --overlay= --journal --journal= --dedup --dedup-memory= --dedup-index-size= --dedup-hash= --stream --stream= --growable --passthrough --reflink-view --snapshot= -f --format -o --allow-references= --allow-other --uid --gid --mode --cache-size
                --cache= --threads --transport= --direct-io= --no-partitions --log= --foreground --nonempty"
            ;;
        umount | sync)
            [ "$command" = sync ] && options="$options --freeze --thaw" || options="$options --lazy --json"
            if [ "${current#-}" = "$current" ]; then
                mapfile -t COMPREPLY < <(compgen -W "$(awk '$3 == "fuse.qcowfs" { print $2 }' /proc/mounts)" -- "$current")
                return
            fi
            ;;
        list) options="$options --json" ;;
        info) options="$options --chain -f --format --allow-references= --json" ;;
        inspect | map) options="$options -f --format --allow-references= --json" ;;
        journal) options="$options -f --format --json" ;;
        check) options="$options -f --format --allow-references= --repair=leaks --repair=all --json" ;;
        resize) options="$options --shrink -f --format --allow-references=" ;;
        loop)
            options="$options -d --detach --sector-size= -w --writable --overlay --overlay= --snapshot= -f --format -o --allow-references= --allow-other
                --uid --gid --mode --cache-size --cache= --threads --transport= --direct-io= --growable --passthrough --reflink-view --log="
            ;;
        config)
            options="$options --json --allow-references= --allow-other --uid --gid --mode --cache-size --cache= --threads --transport= --direct-io= --reflink-view --log="
            ;;
        commit) options="$options -f --format --allow-references=" ;;
        snapshot)
            options="$options -f --format --json"
            if [ "$COMP_CWORD" -eq 2 ] && [ "${current#-}" = "$current" ]; then
                mapfile -t COMPREPLY < <(compgen -W 'list create apply delete' -- "$current")
                return
            fi
            ;;
        dedup)
            options="$options -f --format --allow-references= --dedup-memory= --dedup-index-size= --dedup-hash= --json"
            if [ "$COMP_CWORD" -eq 2 ] && [ "${current#-}" = "$current" ]; then
                mapfile -t COMPREPLY < <(compgen -W 'estimate scan status rebuild off' -- "$current")
                return
            fi
            ;;
        create) options="$options -f --format -o -b --backing -F --backing-format" ;;
    esac

    case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current") ;;
        *) compopt -o default ;;
    esac
}

complete -F _qcowfs qcowfs

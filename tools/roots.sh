# shellcheck shell=bash
# Debian roots: fresh machines to try things on. Other scripts source this file,
# after common.sh. All of it needs to run as root.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/spanprof

# The Debian mirror that this machine uses.
mirror() {
    # shellcheck disable=SC1091,SC2016
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$(. /etc/os-release && echo "$VERSION_CODENAME")" \
            '$1 == release { print $2; exit }'
}

# debian_root SUITE PACKAGE... sets template to a root with the packages, and makes
# it if there is none of this week.
# Nobody is to write to it: see copy_root.
debian_root() {
    local suite=$1 new
    template=$cache/roots/$(IFS=-; echo "$*")
    new=$template.new
    shift
    mkdir -p "$cache/roots"
    exec {lock}>"$cache/roots/lock"
    flock "$lock"
    if [ -n "$(find "$template/complete" -mtime -7 2>/dev/null)" ]; then
        exec {lock}>&-
        return
    fi
    say "Debian root of $suite with $*"
    rm -rf --one-file-system "$new"
    quietly debootstrap --variant=minbase "$suite" "$new" "$(mirror)"
    configure_root "$new"
    quietly in_root "$new" apt-get update
    quietly in_root "$new" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@"
    cp -L /etc/ssl/certs/ca-certificates.crt "$new/etc/ssl/certs/"
    touch "$new/complete"
    rm -rf --one-file-system "$template"
    mv "$new" "$template"
    exec {lock}>&-
}

# How this machine reaches the network: resolver, certificates, proxies.
configure_root() {
    local file
    cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
    mkdir -p "$1/etc/ssl/certs" "$1/usr/local/share/ca-certificates"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    for file in /usr/local/share/ca-certificates/*.crt; do
        if [ -e "$file" ]; then
            cp -L "$file" "$1/usr/local/share/ca-certificates/"
        fi
    done
    apt-config dump | grep '^Acquire::' >"$1/etc/apt/apt.conf.d/80machine"
    if [ -e /etc/pip.conf ]; then
        cp /etc/pip.conf "$1/etc/"
    else
        printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$1/etc/pip.conf"
    fi
}

# copy_root ROOT sets copy to one that is removed when the script ends.
copy_root() {
    mkdir -p "$cache/copies"
    # What a script left that was killed.
    find "$cache/copies" -mindepth 1 -maxdepth 1 -mmin +300 \
        -exec rm -rf --one-file-system {} +
    copy=$(mktemp -d "$cache/copies/XXXXXX")
    trap 'rm -rf --one-file-system "$copy"' EXIT
    trap 'exit 1' INT TERM
    cp -a "$1/." "$copy"
    touch "$copy"
}

# in_root ROOT COMMAND... runs a command there, with nothing of this machine's
# environment but what the network needs. The mounts end with the command.
in_root() {
    local name keep=() home=~root
    for name in {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY PIP_INDEX_URL PIP_CERT \
        PIP_DEFAULT_TIMEOUT MESON_ARGS; do
        if [ -n "${!name-}" ]; then
            keep+=("$name=${!name}")
        fi
    done
    # shellcheck disable=SC2016
    unshare --mount --propagation private bash -euc '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        mount --rbind /sys "$1/sys"
        exec chroot "$@"
    ' in_root "$1" env -i HOME="$home" LC_ALL=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        "${keep[@]}" "${@:2}" </dev/null
}

# copy_sources DIR copies what a clone would have, with what is not committed yet.
copy_sources() {
    cd "${root:?}"
    git -c safe.directory="$root" ls-files --cached --others --exclude-standard -z |
        while IFS= read -r -d '' file; do
            # Deleted files are listed too.
            if [ -e "$file" ]; then
                printf '%s\0' "$file"
            fi
        done |
        tar --null --files-from=- --create | tar --extract --no-same-owner --directory="$1"
}

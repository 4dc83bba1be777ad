#!/bin/sh
# build.sh OUTPUT: publishes the program into OUTPUT, so that OUTPUT/qcowfs runs from any directory.
#
# The program's native launcher looks for .NET in DOTNET_ROOT, in /etc/dotnet/install_location and in the default place.
# Where the SDK is elsewhere and only on PATH, its place is built into the launcher, relative to OUTPUT.
set -eu
output=$1
root=$(dirname "$(dirname "$(readlink -f "$0")")")
dotnet=${DOTNET:-dotnet}
home=$(dirname "$(readlink -f "$(command -v "$dotnet")")")

set -- publish "$root/src/QcowFs/QcowFs.csproj" -c Release -o "$output" --no-self-contained --use-current-runtime \
    -p:PublishDocumentationFiles=false -p:PublishReferencesDocumentationFiles=false -v quiet
case $home in
    /usr/share/dotnet | /usr/lib/dotnet) ;;
    *)
        mkdir -p "$output"
        set -- "$@" "-p:AppHostRelativeDotNet=$(realpath --relative-to="$output" "$home")" \
            '-p:AppHostDotNetSearch=AppRelative%3BEnvironmentVariable%3BGlobal'
        ;;
esac
exec "$dotnet" "$@"

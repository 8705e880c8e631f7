#!/bin/sh
# Does every header compile alone? Most do so on each build: their source includes them first. This compiles the rest.
#
#   headers_compile_alone.sh SOURCE_DIR COMPILER [FLAGS ...]
#
# Prints the compiler's messages for each header that needs another one before it.
set -eu
root=$1
shift
cd "$root"
list=$(mktemp)
trap 'rm -f "$list"' EXIT

total=0
for header in $(find kernels tensor autograd nn optim data dist examples tests -name '*.h' | sort) \
              $(find . -maxdepth 1 -name '*.h' | sed 's|^\./||'); do
  total=$((total + 1))
  source=${header%.h}.cpp
  first=$(sed -n 's/^#include *"\(.*\)".*/\1/p; /^#include *</{s/.*/a system header/p}' "$source" 2>/dev/null | head -n 1)
  [ "$first" = "$header" ] || echo "$header" >> "$list"
done
[ "$total" -gt 0 ] || { echo "no headers in $root"; exit 1; }
echo "$total headers: $((total - $(wc -l < "$list"))) stand first in their source, $(wc -l < "$list") are compiled now"

# Two at a time. xargs goes on after a failure and reports it at the end.
xargs -P 2 -I HEADER sh -c '
  header=$1; shift
  printf "#include \"%s\"\n" "$header" | "$@" -fsyntax-only -x c++ - || { echo "^ $header does not compile alone"; exit 1; }
' sh HEADER "$@" < "$list"
echo "all compile"

#!/bin/sh
# Do the tests exist that pages name? Every part of every --gtest_filter of README.md and docs/, and every
# `program filter` of the table of traps, must match a test; and no trap may be without one. The numbers in the
# table of tiers of docs/engine.md are those of the rows.
#
#   filters_name_tests.sh SOURCE_DIR PROGRAM_DIR
set -eu
root=$1
programs=$2
list=$(mktemp)
trap 'rm -f "$list"' EXIT
failed=0

# Lines of: page, program, filter.
for page in "$root"/README.md "$root"/docs/*.md; do
  sed -n "s|.*build/release/bin/\([a-z_]*_tests\) --gtest_filter='\([^']*\)'.*|$(basename "$page") \1 \2|p" "$page"
done > "$list"
sed -n 's/^| *\([0-9][0-9]*\) |\(.*\)/\1 \2/p' "$root/docs/traps.md" | while read -r number row; do
  echo "$row" | grep -o '`[a-z_]*_tests [^`]*`' | tr -d '`' | sed "s/^/trap-$number /"
done >> "$list"

for number in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  grep -q "^trap-$number " "$list" || { echo "docs/traps.md: trap $number names no test"; failed=1; }
done

figure() {  # PATTERN
  grep -q "$1" "$root/docs/engine.md" || { echo "docs/engine.md: expected '$1' in the table of tiers"; failed=1; }
}
rows() {  # FILTER
  "$programs/parity_tests" --gtest_list_tests --gtest_filter="$1" | grep -c '^  '
}
# Each row is run with GPT-2 and with Llama, but for mistakes, of which one may stand in several rows.
mistakes=$("$programs/parity_tests" --gtest_list_tests --gtest_filter='*/Mutants*' |
           sed -n 's|^  .*/\([A-Za-z]*\)_.*|\1|p' | sort -u | grep -c .)
figure "| T1 .* | $(($(rows 'Layouts/Parity*:Optimizers/Parity*') / 2)) layouts and optimizers,"
figure "| T2 .* | $(($(rows 'InF32/Parity*') / 2)) layouts |"
figure "| T4 .* | $(rows '*/Resumed*') chains of layouts |"
figure "| T6 .* | $(($(rows 'InBf16/Parity*') / 2)) and $(($(rows 'InF16/Parity*') / 2)) layouts |"
figure "| T5 | $mistakes mistakes,"

set -f  # the stars of filters are not files
while read -r page program filter; do
  [ -x "$programs/$program" ] || { echo "$page: there is no $program in $programs"; failed=1; continue; }
  for part in $(echo "$filter" | tr ':' ' '); do
    tests=$("$programs/$program" --gtest_list_tests --gtest_filter="$part" | grep -c '^  ') || true
    [ "$tests" -gt 0 ] || { echo "$page: no test of $program matches $part"; failed=1; }
  done
done < "$list"
echo "$(wc -l < "$list") filters"
exit "$failed"

#!/bin/sh
# Installs this build into an empty folder, builds an outside program and the README's program against it, runs both.
# Usage: install_test.sh CMAKE BUILD_FOLDER SOURCE_FOLDER MPIEXEC COMPILER [EXTRA CMAKE ARGUMENTS]
set -eu
cmake=$1 build=$2 source=$3 mpiexec=$4 compiler=$5
shift 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$cmake" --install "$build" --prefix "$work/prefix" >"$work/install.log"
awk '/^```cpp/ {inside = 1; next} /^```/ {inside = 0} inside' "$source/README.md" >"$work/readme.cpp"
lines=$(grep -c . "$work/readme.cpp")
if [ "$lines" -lt 10 ] || [ "$lines" -gt 45 ]; then
  echo "README.md: expected one program of about 30 lines, found $lines lines of C++"; exit 1
fi

"$cmake" -S "$source/tests/install" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$compiler" \
         -DCMAKE_BUILD_TYPE=Debug -DREADME_PROGRAM="$work/readme.cpp" "$@" >"$work/configure.log" ||
  { cat "$work/configure.log"; exit 1; }
"$cmake" --build "$work/build" -j 2 >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }

# d/dx Σ x² = 2x; x is 1 on rank 0 and 2 on rank 1.
expect() {  # COMMAND..., output wanted on standard input
  wanted=$(cat)
  got=$("$@")
  if [ "$got" != "$wanted" ]; then
    printf 'expected of %s:\n%s\ngot:\n%s\n' "$*" "$wanted" "$got"; exit 1
  fi
}
echo "1 ranks: [2., 2.]  f32 [2]" | expect "$work/build/outside"
echo "2 ranks: [6., 6.]  f32 [2]" | expect "$work/build/outside" --ranks 2
echo "2 ranks: [6., 6.]  f32 [2]" | expect "$mpiexec" -n 2 "$work/build/outside"

# The README's program learns from what the installed gpt2_prepare makes of a text: to equal losses on 1 rank and on 2.
i=0
while [ $i -lt 400 ]; do
  echo "In the year $i the river rose by $((i * 7 % 31)) cubits, and $((i * 13 % 97)) fields were under water."
  i=$((i + 1))
done >"$work/text"
"$work/prefix/bin/gpt2_prepare" --text "$work/text" --vocab 300 --out "$work/data" >/dev/null
alone=$("$work/build/from_readme" "$work/data/train.tokens")
"$work/build/from_readme" "$work/data/train.tokens" --ranks 2 >"$work/threads"
"$mpiexec" -n 2 "$work/build/from_readme" "$work/data/train.tokens" >"$work/mpi"
(mkdir "$work/here" && cd "$work/here" && mkdir data && cp "$work/data/train.tokens" data &&
  "$work/build/from_readme" --ranks 4 >"$work/four")  # the flag alone leaves no argument
echo "$alone"
echo "$alone" | awk '/^step/ {if (!n++) first = $4; last = $4} END {exit !(n > 5 && last < 0.7 * first)}' ||
  { echo "the loss did not fall by a third"; exit 1; }
# Sums in another order differ by a rounding of f32, 6e-8, which training itself makes grow: to 1e-5 of the loss within
# 21 steps, to a thousandth within 100. A wrong sum over ranks differs by more in its first steps.
for other in threads mpi four; do
  echo "$alone" | awk -v other="$work/$other" '
    /^step/ {getline line < other; split(line, field); d = field[4] - $4; if (d < 0) d = -d
             bound = $2 <= 21 ? 1e-5 : 1e-3
             if (field[2] != $2 || d > bound * $4) {print "alone: " $0 "\n" other ": " line; exit 1}}' || exit 1
done

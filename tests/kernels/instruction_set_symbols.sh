#!/bin/sh
# Every symbol that the linker may merge (nm's W, V, u) in an object of kernels/cpu/vector must belong to the namespace
# of its instruction set: otherwise AVX-512 code of a shared inline function could run on a machine without it.
#   instruction_set_symbols.sh NM FOLDER SET...
# FOLDER is the build folder of kernels/. Ends with status 1 if a symbol breaks the rule.
nm=$1
objects_root=$2
shift 2
status=0
for set in "$@"; do
  objects=$(find "$objects_root/CMakeFiles/tessera_kernels_$set.dir" -name '*.o')
  if [ -z "$objects" ]; then
    echo "no objects of $set under $objects_root: build them first"
    exit 1
  fi
  for object in $objects; do
    # Run-time type information and the pointer to the unwinder's routine are data, the same in every object.
    shared=$("$nm" -C "$object" | grep -E '^[0-9a-f]+ [WVu] ' |
      grep -v -E ' (typeinfo (name )?for |DW\.ref\.__gxx_personality_v0$)' |
      grep -v "tessera::kernels::$set::")
    if [ -n "$shared" ]; then
      echo "$object emits symbols outside tessera::kernels::$set:"
      echo "$shared"
      status=1
    fi
  done
done
exit $status

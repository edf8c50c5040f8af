#!/bin/sh
# one_symbol_each.sh NM OBJECT...
#
# Fails unless every kernel object defines one symbol for others, its table: a second one would be a
# shared inline function, whose AVX-512 copy the linker might choose for the whole library.
nm=$1
shift
[ $# -gt 0 ] || exit 1
for object; do
  symbols=$("$nm" --defined-only --extern-only "$object" | grep -v '^$')
  echo "$object: $symbols"
  [ "$(echo "$symbols" | wc -l)" -eq 1 ] && [ -n "$symbols" ] || exit 1
done

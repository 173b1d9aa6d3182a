# shellcheck shell=bash
# Reads apt source files and prints where the same archives keep their backports suite.
# Sourced by setup.sh and by its test; defines functions and does nothing else.

# backports_stanzas CODENAME FILE...
# For every enabled binary entry that carries CODENAME's main component, a deb822 stanza for
# CODENAME-backports with the entry's own address, signing key and options. A *.sources file is
# read as deb822, any other as one entry per line. Third parties may match too: the caller tries
# the stanzas in turn.
backports_stanzas() {
  local codename=$1 file
  shift
  for file in "$@"; do
    [[ -r $file ]] || continue
    case $file in
      *.sources) _from_deb822 "$codename" "$file" ;;
      *) _from_lines "$codename" "$file" ;;
    esac
  done
}

# nth_stanza N < STANZAS: prints the N-th, counted from 1; fails when there are fewer.
nth_stanza() {
  awk -v RS= -v wanted="$1" 'NR == wanted { print; found = 1 } END { exit !found }'
}

_from_deb822() {
  awk -v codename="$1" '
    function has(text, word) { return index(" " text " ", " " word " ") }
    function flush_stanza() {
      if (has(field["types"], "deb") && field["enabled"] != "no" &&
          has(field["components"], "main") &&
          (has(field["suites"], codename) || has(field["suites"], "stable") ||
           has(field["suites"], "oldstable")))
        printf "Types: deb\nSuites: %s-backports\nComponents: main\n%s\n", codename, kept
      kept = ""; name = ""
      split("", field)
    }
    { sub(/\r$/, "") }
    /^[ \t]*$/ { flush_stanza(); next }
    /^#/ { next }
    /^[ \t]/ { value = $0 }                        # continues the field above
    /^[^ \t]/ {
      name = tolower($0); sub(/[ \t]*:.*/, "", name)
      value = $0; sub(/^[^:]*:/, "", value)
    }
    {
      gsub(/[ \t]+/, " ", value)
      field[name] = field[name] value
      sub(/^ /, "", field[name]); sub(/ $/, "", field[name])
      if (name !~ /^(types|suites|components|enabled|x-repolib-name)$/) kept = kept $0 "\n"
    }
    END { flush_stanza() }
  ' "$2"
}

_from_lines() {
  awk -v codename="$1" '
    { sub(/\r$/, ""); sub(/#.*/, "") }
    $1 != "deb" { next }
    {
      options = ""
      if (match($0, /^[ \t]*deb[ \t]+\[[^]]*\]/)) {
        options = substr($0, RSTART, RLENGTH)
        sub(/^[^[]*\[/, "", options); sub(/\]$/, "", options)
        $0 = "deb " substr($0, RSTART + RLENGTH)
      }
      if ($3 != codename && $3 != "stable" && $3 != "oldstable") next
      for (i = 4; i <= NF && $i != "main"; i++);
      if (i > NF) next
      printf "Types: deb\nSuites: %s-backports\nComponents: main\nURIs: %s\n", codename, $2
      count = split(options, option, " ")
      for (i = 1; i <= count; i++) {
        cut = index(option[i], "=")
        name = substr(option[i], 1, cut - 1); value = substr(option[i], cut + 1)
        if (name ~ /^(arch|lang|target)$/) gsub(/,/, " ", value)
        if (name == "arch") name = "Architectures"
        if (name == "lang") name = "Languages"
        if (name == "target") name = "Targets"
        if (cut) printf "%s: %s\n", toupper(substr(name, 1, 1)) substr(name, 2), value
      }
      print ""
    }
  ' "$2"
}

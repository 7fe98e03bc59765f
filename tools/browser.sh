#!/bin/sh
# Find a browser for the tests of the built pages, or try to get one. Never fails: without a browser
# those tests are skipped, and say so. Usage: browser.sh PYTHON
python=${1:-python3}

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done

# playwright's own copy, from an earlier run
own='from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    print(p.chromium.executable_path)'
if [ -x "$("$python" -c "$own" 2>/dev/null)" ]; then
    exit 0
fi

mkdir -p _build
log=_build/browser.log
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "browser: none found, installing Debian's chromium (log: $log)"
    export DEBIAN_FRONTEND=noninteractive
    if { apt-get update && apt-get install -y --no-install-recommends chromium; } </dev/null >"$log" 2>&1 &&
            command -v chromium >/dev/null 2>&1; then
        exit 0
    fi
fi
echo "browser: none found, trying playwright's own chromium (log: $log)"
if ! "$python" -m playwright install chromium </dev/null >>"$log" 2>&1; then
    echo "browser: none to be had; the tests that need one are skipped (or install chromium yourself)"
fi
exit 0

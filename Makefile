# What a person or CI runs; `make help` lists it. The work is in small scripts: packaging/deps.sh installs what is
# missing, tests/run-tests.sh runs the suites and adds up their counts, packaging/demo.sh shows the main job.

PREFIX  ?= /usr/local
DESTDIR ?=
DOTNET  ?= dotnet
ROOT    := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
OUTPUT  := $(ROOT)/build

export DOTNET
export DOTNET_CLI_TELEMETRY_OPTOUT := 1
export DOTNET_NOLOGO := 1

.DEFAULT_GOAL := help
.PHONY: help build test test-ways soak demo bench bench-scale bench-micro lint deps deps-bench sdk install clean

help: ## show this list
	@printf 'QcowFs: make TARGET\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: sdk ## release build; the program is build/qcowfs
	@$(ROOT)/packaging/build.sh $(OUTPUT)

test: deps build ## everything that CI runs; last line: N passed, N failed, N skipped
	@$(ROOT)/tests/run-tests.sh

test-ways: deps build ## the real mounts again, over io_uring and out of reflink views
	@$(ROOT)/tests/run-ways.sh

soak: deps build ## the long runs with new seeds each round (MINUTES=60, STEPS=100000000 of the invariants at least)
	@$(ROOT)/tests/soak.sh $(or $(MINUTES),60) $(or $(STEPS),100000000)

demo: deps build ## the main job, on a fresh machine: make a disk, mount it, use it, check it
	@$(ROOT)/packaging/demo.sh $(OUTPUT)/qcowfs

bench: deps-bench build ## QcowFs, its peers and a null FUSE server in turns; results in build/bench (BENCH="--rounds 5 ...")
	@$(DOTNET) run --project $(ROOT)/tests/QcowFs.Benchmarks -c Release -- bench --qcowfs $(OUTPUT)/qcowfs --report $(OUTPUT)/bench $(BENCH)

bench-scale: deps build ## cost over virtual size, snapshots and layers, as a table (SCALE="--report DIRECTORY")
	@$(DOTNET) run --project $(ROOT)/tests/QcowFs.Benchmarks -c Release -- scale --qcowfs $(OUTPUT)/qcowfs $(SCALE)

bench-micro: deps sdk ## the pieces of the hot path by themselves (MICRO="lookup cache commit hash request")
	@$(DOTNET) run --project $(ROOT)/tests/QcowFs.Benchmarks -c Release -- micro $(MICRO)

lint: sdk ## format, code style and analysers, all as errors
	@$(DOTNET) format $(ROOT)/QcowFs.sln --verify-no-changes --severity warn
	@$(DOTNET) build $(ROOT)/QcowFs.sln --no-incremental -v quiet

deps: ## install the Debian packages that build and tests need, if any is missing
	@$(ROOT)/packaging/deps.sh

deps-bench: deps ## the same for what only bench uses
	@$(ROOT)/packaging/deps.sh bench

sdk:
	@$(DOTNET) --list-sdks 2>/dev/null | grep -q '^10\.' || { \
	  printf '%s\n' 'make: the .NET 10 SDK is needed and was not found; see https://dotnet.microsoft.com/download/dotnet/10.0' >&2; exit 1; }

install: build ## install under DESTDIR and PREFIX (default /usr/local)
	@$(ROOT)/packaging/install.sh '$(OUTPUT)' '$(DESTDIR)' '$(PREFIX)'

clean: ## remove everything that was built
	rm -rf '$(OUTPUT)' '$(ROOT)'/src/*/bin '$(ROOT)'/src/*/obj '$(ROOT)'/tests/*/bin '$(ROOT)'/tests/*/obj

# Baton's commands for people. Each one installs what it needs (Debian 12, as root) and can be run again at any time.
#
#   make demo    build, then show failovers in a lab of network namespaces; with KEEP=1, a lab that stays, with its web page
#   make test    build, then run all tests
#   make bench   build with optimisation, then measure against keepalived and a minimal program
#   make fuzz    feed the parser of probe frames with what libFuzzer makes up, then that of configurations, for FUZZ_SECONDS (300) each
#   make docs    the documentation in docs/ as a book, below target/book
#   make setup   only install what the others need
#   make audit   ask the database of advisories (needs the network) about what Baton depends on
#   make deb     build the Debian package, below target/deb
#   make test-deb install, start, upgrade, remove and purge it in a throw-away root
#   make install put the agent, its unit and an example configuration on this machine

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Any cargo will do for the agent; the kernel programs are built by its build script with a toolchain that has the
# source of `core` (see agent/build.rs).
CARGO ?= $(shell command -v cargo || echo /usr/bin/cargo)
export PATH := $(PATH):$(HOME)/.cargo/bin

BPF_LINKER_VERSION := 0.13.0
MDBOOK_VERSION := 0.5.4
# What the build needs; then what only the tests, the lints and the benchmarks need.
PACKAGES := ca-certificates gcc libc6-dev cargo-web rust-web-src llvm-22-dev iproute2 protobuf-compiler libprotobuf-dev
# etcd runs in the lab only: nothing is started on this machine.
DEMO_PACKAGES := etcd-server etcd-client
# An NFS server, the portmapper of its version 3, and a client, in the lab only, too.
FILE_PACKAGES := nfs-ganesha nfs-ganesha-vfs
CLIENT_PACKAGES := libnfs13 e2fsprogs
TEST_PACKAGES := iputils-ping openssl libfaketime procps smbclient dbus-daemon
# And an SMB server.
SMB_PACKAGES := samba
# A browser for the web page; Prometheus brings its own tool for rules and metrics.
WATCH_PACKAGES := chromium-headless-shell fonts-dejavu-core
LINT_PACKAGES := rust-web-clippy rustfmt-web
BENCH_PACKAGES := keepalived

# Installs those of the packages that are missing.
define install
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "setup: installing" $$missing; \
		[ "$$(id -u)" = 0 ] || { echo "setup: needs root to install these packages; run it as root"; exit 1; }; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q; \
		apt-get install -y -q --no-install-recommends $$missing; \
	fi
endef

.PHONY: help setup setup-packages setup-demo setup-test setup-lint setup-bench setup-deny setup-docs build demo test lint deny audit bench fuzz docs deb \
	test-deb install

help:
	@sed -n 's/^#   /  /p' Makefile

setup:
	$(call install,$(PACKAGES))
	@if ! command -v bpf-linker >/dev/null; then \
		echo "setup: building bpf-linker $(BPF_LINKER_VERSION)"; \
		LLVM_PREFIX=/usr/lib/llvm-22 $(CARGO) install bpf-linker --version $(BPF_LINKER_VERSION) --locked \
			--no-default-features --features llvm-22; \
	fi
	@echo "setup: everything is installed"

# Installs those of the packages that are missing, and keeps the services off that Debian starts with them: the lab runs its
# own. A service that was there before is left alone.
define install_idle
	@if ! dpkg-query -W -f='$${Status}' $(1) 2>/dev/null | grep -q 'install ok installed'; then \
		$(MAKE) --no-print-directory setup-packages NAMES="$(2)"; \
		systemctl disable --now $(3) >/dev/null 2>&1 || true; \
	fi
endef

setup-packages:
	$(call install,$(NAMES))

setup-demo: setup
	$(call install_idle,etcd-server,$(DEMO_PACKAGES),etcd)
	$(call install_idle,rpcbind,rpcbind,rpcbind.socket rpcbind)
	$(call install_idle,nfs-ganesha,$(FILE_PACKAGES),nfs-ganesha)
	$(call install,$(CLIENT_PACKAGES))

setup-test: setup-demo
	$(call install,$(TEST_PACKAGES) $(WATCH_PACKAGES))
	$(call install_idle,samba,$(SMB_PACKAGES),smbd nmbd samba-ad-dc)
	$(call install_idle,prometheus,prometheus,prometheus)

# A rustup toolchain brings its own.
setup-lint: setup
	$(if $(shell $(CARGO) clippy --version 2>/dev/null),,$(call install,$(LINT_PACKAGES)))

setup-bench: setup-demo
	$(call install_idle,keepalived,$(BENCH_PACKAGES),keepalived)
	$(call install,smbclient)
	$(call install_idle,samba,$(SMB_PACKAGES),smbd nmbd samba-ad-dc)

build: setup
	@echo "build: the agent and its kernel programs"
	$(CARGO) build --locked --workspace --all-targets

demo: setup-demo
	$(CARGO) build --locked -p baton
	@echo "demo: a lab in network namespaces; nothing outside it is touched"
	target/debug/baton demo $(if $(KEEP),--keep)

# Two at a time: a cluster of three nodes with its store keeps a processor busy.
test: build setup-test
	@[ "$$(id -u)" = 0 ] || { echo "test: the tests make network namespaces and load kernel programs; run them as root"; exit 1; }
	$(CARGO) test --locked --workspace --all-targets -- --test-threads=2

lint: build setup-lint
	$(CARGO) fmt --all --check
	cd ebpf && $(CARGO) fmt --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	cd ebpf && $(CARGO) clippy --locked --bin baton-ebpf --target-dir ../target/ebpf -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	$(MAKE) --no-print-directory deny

# Licences, banned crates and sources of what is depended upon: needs nothing from outside.
deny: setup-deny
	$(CARGO) deny --locked check licenses bans sources

# Known vulnerabilities: fetches the database of advisories from github.com.
audit: setup-deny
	$(CARGO) deny --locked check advisories

setup-deny: setup
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --version 0.20.2 --locked

# Stress of each of Baton's two profiles.
STEADY_MINUTES ?= 10
bench: setup-bench
	$(CARGO) build --locked --release --workspace
	target/release/baton-bench xdp-cost --json bench/out/xdp-cost.json
	target/release/baton-bench simulate --json bench/out/simulate.json --html bench/out/simulate.html
	target/release/baton-bench scale --json bench/out/scale.json
	target/release/baton-bench silent-port --runs 60 --json bench/out/silent-port.json
	target/release/baton-bench node-failover --runs 12 --json bench/out/node-failover.json --html bench/out/node-failover.html
	target/release/baton-bench file-client --runs 3 --json bench/out/file-client.json --html bench/out/file-client.html
	target/release/baton-bench smb-sync --json bench/out/smb-sync.json
	target/release/baton-bench steady --minutes $(STEADY_MINUTES) --json bench/out/steady.json
	target/release/baton-bench port-failover --json bench/out/port-failover.json --html bench/out/port-failover.html

# A stable compiler will do, without sanitizers: what is fuzzed is without allocation.
FUZZ_SECONDS ?= 300
fuzz: setup
	$(call install,g++)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --version 0.13.2 --locked
	cd common/fuzz && RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none parse_probe -- -max_total_time=$(FUZZ_SECONDS)
	BATON_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --locked --workspace --test config_fuzz -- --nocapture

# The pages are plain Markdown, from docs/src/first-cluster.md on; a book of them is a convenience. Tests check them without it.
docs: setup-docs
	mdbook build docs
	@echo "docs: open target/book/index.html"

setup-docs:
	@command -v mdbook >/dev/null || $(CARGO) install mdbook --version $(MDBOOK_VERSION) --locked

DEB_VERSION ?= 0.1.0-1
DEB_FOLDER ?= target/deb
deb: setup
	@command -v cargo-deb >/dev/null || $(CARGO) install cargo-deb --version 3.8.0 --locked
	$(CARGO) build --locked --release -p baton -p baton-package
	target/release/baton-package target/pages
	$(CARGO) deb --no-build -q --fast -p baton --deb-version $(DEB_VERSION) --output $(DEB_FOLDER)/

# The same programs once more as the next version. ROOT: a tree of Debian's that is installed into (a copy, of which nothing is
# kept), instead of this machine's own; `debootstrap`: a bare one, made for it from this machine's mirror of Debian (a minute more, and
# it needs the network).
ROOT ?= /
test-deb: deb
	$(call install,lintian man-db iputils-ping $(filter debootstrap,$(ROOT)))
	$(MAKE) --no-print-directory deb DEB_VERSION=0.1.1-1 DEB_FOLDER=target/deb/next
	agent/package/life-cycle target/deb/baton_0.1.0-1_*.deb target/deb/next/baton_0.1.1-1_*.deb $(ROOT)

install: setup
	$(CARGO) build --locked --release -p baton
	install -D -m 0755 target/release/baton $(DESTDIR)/usr/sbin/baton
	install -D -m 0644 agent/systemd/baton.service $(DESTDIR)/lib/systemd/system/baton.service
	install -D -m 0644 agent/systemd/resources.conf $(DESTDIR)/usr/share/baton/resources.conf
	[ -e $(DESTDIR)/etc/baton/baton.toml ] || install -D -m 0644 agent/baton.toml $(DESTDIR)/etc/baton/baton.toml

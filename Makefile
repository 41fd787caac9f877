# Two commands do all: `make run` and `make test`. Neither needs a registry, etcd or systemd.
#
#   make run          build the release and run the pods of examples/ in the foreground
#   make test         format, lints, licences, unit tests, tests on real containers, tests in virtual machines
#   make test-unit    the tests that need no root
#   make test-root    the tests on real containers (root)
#   make test-vm      the tests in virtual machines (qemu, no KVM needed)
#   make bench        measure against the budgets and the peers
#   make bench-images measure pulls and layers against the peers
#   make layout       trace which functions of podling and podling-runtime belong side by side
#   make install      programs, units, man pages and completions under $(DESTDIR)$(PREFIX)

SHELL  := /bin/bash
TARGET := x86_64-unknown-linux-gnu
PREFIX ?= /usr
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)
CARGO  ?= cargo

RELEASE := target/$(TARGET)/release
# podling-runtime is built for musl, whose start asks the processor for nothing (.cargo/config.toml). Where Rust has no
# standard library for it and none is to be had, it is built as all else.
MUSL := x86_64-unknown-linux-musl
RUNTIME_TARGET = $(shell test -d "$$(rustc --print target-libdir --target $(MUSL))" && echo $(MUSL) || echo $(TARGET))
RUNTIME = target/$(RUNTIME_TARGET)/release/podling-runtime
# What is built of the whole workspace has the features of the whole workspace, and is compiled once.
BUILD = $(CARGO) build --workspace
# The podling-runtime that is tested is the one of its own target.
TESTED = PODLING_RUNTIME=$(CURDIR)/target/$(RUNTIME_TARGET)/debug/podling-runtime
TEST = $(TESTED) $(CARGO) test --workspace --features privileged-tests
# Integration tests that need no root; test-root runs them with all others, too.
UNPRIVILEGED := cli_client cli_files cli_images source_directory crash conformance_table probe_grpc
# Privileged test programs are started through sudo when this is not root.
ROOT_RUNNER := $(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E")

BUILD_PACKAGES := build-essential musl-tools
# What a seccomp filter is held to.
UNIT_PACKAGES  := libseccomp-dev
TEST_PACKAGES  := busybox-static strace iproute2 nftables etcd-server etcd-client docker-registry apache2-utils skopeo umoci \
                  jq curl openssl podman netavark buildah containerd catatonit uidmap mmdebstrap libcap2-bin
VM_PACKAGES    := qemu-system-x86 mmdebstrap e2fsprogs
BENCH_PACKAGES := busybox-static crun runc podman netavark strace

# Installs what is missing and asks for root only then.
define ensure
	@missing=""; for p in $(1); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; fi
endef

# Of Debian trixie, for a machine whose own Debian has no cosign: it needs nothing but a C library of Debian 12 or later.
# apt checks what it downloads with Debian's keys, and touches nothing of the machine.
target/tools/cosign: KEYRING := /usr/share/keyrings/debian-archive-keyring.gpg
target/tools/cosign:
	rm -rf target/tools/apt && mkdir -p target/tools/apt/lists/partial target/tools/apt/cache/archives/partial
	: > target/tools/apt/status
	echo 'deb [signed-by=$(KEYRING)] http://deb.debian.org/debian trixie main' > target/tools/apt/sources.list
	cd target/tools/apt && here=$$PWD && \
	  apt="apt-get -q -o Dir::State=$$here -o Dir::State::status=$$here/status -o Dir::Cache=$$here/cache \
	    -o Dir::Etc::SourceList=$$here/sources.list -o Dir::Etc::SourceParts=/dev/null \
	    -o Acquire::Languages=none -o APT::Sandbox::User= -o APT::Architecture=amd64" && \
	  $$apt update && $$apt download cosign && dpkg-deb -x cosign_*.deb .
	mv target/tools/apt/usr/bin/cosign $@ && rm -rf target/tools/apt

.PHONY: all build run test test-lint test-unit test-root test-vm tested-runtime bench bench-images layout install deps deps-unit \
        deps-test deps-vm deps-bench

all: build

deps:
	$(call ensure,$(BUILD_PACKAGES))
	@test "$(RUNTIME_TARGET)" = $(MUSL) || rustup target add $(MUSL) || \
	  echo "No standard library for $(MUSL): podling-runtime is built with glibc, and is slower to start in virtual machines."
deps-unit: deps
	$(call ensure,$(UNIT_PACKAGES))
deps-test: deps-unit $(if $(shell command -v cosign),,target/tools/cosign)
	$(call ensure,$(TEST_PACKAGES))
deps-vm: deps-unit
	$(call ensure,$(VM_PACKAGES))
deps-bench: deps-unit
	$(call ensure,$(BENCH_PACKAGES))

# What `podling-runtime --version` tells.
build: export PODLING_COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
build: deps
	$(BUILD) --release --bin podling --bin podling-pod
	$(BUILD) --release --bin podling-runtime --target $(RUNTIME_TARGET)

run: build
	$(SUDO) $(RELEASE)/podling run examples/

test: test-lint test-unit test-root test-vm

test-lint: deps-unit
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) check --quiet --locked --manifest-path fuzz/Cargo.toml --target-dir target
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --offline check licenses bans sources; \
	 else echo "cargo-deny is not installed: licences and duplicate versions are not checked (cargo install cargo-deny)"; fi

# The same packages and features for unit and privileged tests, and for what vm-tests builds: all is compiled once.
# `cargo test --workspace` runs these and no more.
test-unit: deps-unit
	$(TEST) --lib --bin podling $(addprefix --test ,$(UNPRIVILEGED))
	$(TEST) --doc

tested-runtime: deps
	$(BUILD) --features privileged-tests --bin podling-runtime --target $(RUNTIME_TARGET)

test-root: deps-test tested-runtime
	$(ROOT_RUNNER) $(TEST) --test '*' -- --test-threads=2

# Two guests at a time, of one processor each.
test-vm: deps-vm tested-runtime
	$(ROOT_RUNNER) $(TESTED) $(CARGO) test -p podling-vm-tests --features vm -- --test-threads=2 --nocapture

bench: build deps-bench
	$(ROOT_RUNNER) PODLING_RUNTIME=$(CURDIR)/$(RUNTIME) $(CARGO) bench --bench budgets

bench-images: deps-test
	$(ROOT_RUNNER) $(CARGO) bench -p podling-images --bench layers

# Which functions lie side by side in the programs: before a release, and when their memory has grown. Of the whole
# workspace, as for `build`: alone they have other features of their dependencies, and other functions.
layout: deps-bench
	export CARGO_PROFILE_RELEASE_STRIP=none CARGO_TARGET_DIR=target/layout; \
	$(BUILD) --release --bin podling --bin podling-pod && \
	$(BUILD) --release --bin podling-runtime --target $(RUNTIME_TARGET)
	for pair in runtime:$(RUNTIME_TARGET)/release/podling-runtime agent:$(TARGET)/release/podling; do \
	  $(ROOT_RUNNER) $(CARGO) run --quiet -p podling-runtime --example layout -- \
	    target/layout/$${pair#*:} $${pair%%:*}/layout/hot.ld || exit; \
	done

install: build
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(RELEASE)/podling $(RUNTIME)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec/podling $(RELEASE)/podling-pod
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system systemd/units/*.service systemd/units/*.slice
	install -D -m 0644 systemd/units/podling.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/podling.conf
	install -D -m 0644 systemd/units/podling.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/podling.conf
	install -D -m 0644 systemd/units/podling-default.apparmor $(DESTDIR)/etc/apparmor.d/podling-default
	install -d -m 0755 $(DESTDIR)/etc/podling/manifests
	$(RELEASE)/podling man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(RELEASE)/podling completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/podling

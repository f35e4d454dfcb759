# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-async: asyncpool (filter), delaymem (plugin), the API for plugins.
#
#   make              ./asyncpool.so, ./delaymem.so and the manual pages
#   make deps         install the packages that all goals need (root or sudo)
#   make fuzz         afl++ sends broken sessions for TIME=600 seconds; KIND= is
#                     one of tests/fuzz/server
#   make soak         mixed load with faults for TIME=600 seconds
#   make crash-long   the crash tests with many more crash points: hours
#   make peers        test suites of other projects, without asyncpool and with
#                     it: tests/peers; hours on a busy machine.  SUITES=...
#                     make deps-peers installs what they need (Debian)
#   make demo         one table in about a minute: asyncpool over a 64 ms device
#   make check        all tests; check-asan, check-tsan and check-valgrind run
#                     them under a tool
#   make simulate     ten million requests under simulated threads, in minutes;
#                     SEEDS=N
#   make check-trixie all tests on Debian 13, in a chroot (root only)
#   make check-32     the same on Debian 12 for 32-bit x86
#   make analyze      static analysis of the sources: tests/analyze
#   make coverage     lines and branches that the tests run (TESTS=...)
#   make bench        the whole benchmark, see benchmarks/README
#   make plot-limit   table and plot of rules for the number in flight: seconds
#   make bench-kernel Linux's own NBD client as the client, in a guest; minutes
#   make install      into nbdkit's own directories, or prefix; DESTDIR
#
# A variant (plain, asan, tsan, coverage, debug, or a name of your own for
# another compiler: make VARIANT=clang CC=clang CXX=clang++) is built in
# build/VARIANT.  The plain one is copied to the top.

VARIANT ?= plain
B := build/$(VARIANT)

CC ?= cc
PKG_CONFIG ?= pkg-config
CFLAGS ?= -O2 -g
CXXFLAGS ?= -O2 -g
WARN := -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wstrict-prototypes \
  -Wmissing-prototypes -Wold-style-definition -Wvla -Wundef -Wpointer-arith \
  -Wcast-qual -Wwrite-strings -Wformat=2 -Werror
SAN_plain :=
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread
SAN_coverage := --coverage -fprofile-update=atomic -O0
SAN := $(SAN_$(VARIANT))
# All variants but plain and coverage check the invariants wherever engine.lock
# is released (filter/check.h), and the order of locks (lock.h).
DEBUG := $(if $(filter-out plain coverage,$(VARIANT)),-DASYNCPOOL_DEBUG)

# Expanded by the goals that compile: make deps runs without the libraries.
NBDKIT_CFLAGS = $(shell $(PKG_CONFIG) --cflags nbdkit)
GLIB_CFLAGS = $(shell $(PKG_CONFIG) --cflags glib-2.0)
GLIB_LIBS = $(shell $(PKG_CONFIG) --libs glib-2.0)
NBD_LIBS = $(shell $(PKG_CONFIG) --libs libnbd)
COMPILE = $(CC) $(CPPFLAGS) $(CFLAGS) $(WARN) $(SAN) $(DEBUG) -pthread -fPIC \
  -fvisibility=hidden -Ifilter -Iplugin -Iplugin/common -Iplugin/async \
  $(NBDKIT_CFLAGS) $(GLIB_CFLAGS) -MMD -MP

COMPILE_CXX = $(CXX) $(CPPFLAGS) $(CXXFLAGS) -std=c++17 -Wall -Wextra -Werror \
  $(SAN) -pthread -fPIC \
  -fvisibility=hidden -Iplugin/async $(NBDKIT_CFLAGS) -MMD -MP

FILTER_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard filter/*.c))
# What every plugin with async hooks is linked with.
ASYNC_LIB := $(B)/libnbdkit-async.a
PLUGIN_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard plugin/*.c))
# All that does not call nbdkit, for the unit tests.
CORE_OBJ := $(filter-out $(addprefix $(B)/,filter/asyncpool.o \
  filter/config.o filter/next.o plugin/delaymem.o),$(FILTER_OBJ) $(PLUGIN_OBJ))

MODULES := $(B)/asyncpool.so $(B)/delaymem.so
TOP := $(if $(filter plain,$(VARIANT)),asyncpool.so delaymem.so)
MAN := $(addprefix $(B)/,nbdkit-async.1 nbdkit-asyncpool-filter.1 \
  nbdkit-delaymem-plugin.1 nbdkit-async-plugin.3)

all: $(MODULES) $(ASYNC_LIB) $(TOP) $(MAN)

$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@

$(B)/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(COMPILE_CXX) -c $< -o $@

# nodelete: threads of the pool may still end when nbdkit unloads the filter.
$(B)/asyncpool.so: $(FILTER_OBJ)
	$(CC) $(LDFLAGS) $(SAN) -pthread -shared -Wl,-z,nodelete $^ -o $@ $(GLIB_LIBS)

$(ASYNC_LIB): $(patsubst %.c,$(B)/%.o,$(wildcard plugin/async/*.c))
	rm -f $@
	$(AR) rcs $@ $^

$(B)/delaymem.so: $(PLUGIN_OBJ) $(ASYNC_LIB)
	$(CC) $(LDFLAGS) $(SAN) -pthread -shared $^ -o $@

$(TOP): %.so: $(B)/%.so
	cp $< $@.new && mv $@.new $@

# Tests: tests/test-NAME.c are programs that print TAP, tests/test-NAME.sh are
# scripts.  tests/plugin-NAME.c and .cpp are plugins that only tests load.
# tests/lib*.c are linked with every program.
TEST_C := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/test-*.c))
TEST_PLUGINS_CXX := $(patsubst tests/plugin-%.cpp,$(B)/tests/%.so,\
  $(wildcard tests/plugin-*.cpp))
TEST_PLUGINS := $(patsubst tests/plugin-%.c,$(B)/tests/%.so,\
  $(wildcard tests/plugin-*.c)) $(TEST_PLUGINS_CXX)
TEST_LIB := $(patsubst %.c,$(B)/%.o,$(filter-out tests/libworld.c,\
  $(wildcard tests/lib*.c)))

$(B)/tests/test-%: $(B)/tests/test-%.o $(TEST_LIB) $(CORE_OBJ)
	$(CC) $(LDFLAGS) $(SAN) -pthread $^ -o $@ $(GLIB_LIBS) $(NBD_LIBS) -lm

$(B)/tests/%.so: $(B)/tests/plugin-%.o $(TEST_LIB) $(ASYNC_LIB)
	$(if $(filter $@,$(TEST_PLUGINS_CXX)),$(CXX),$(CC)) $(LDFLAGS) $(SAN) \
	  -pthread -shared $^ -o $@ $(GLIB_LIBS)

# libworld.c calls the engine, which test plugins do not have.
$(filter $(B)/tests/test-engine-%,$(TEST_C)): $(B)/tests/libworld.o

# These make allocations fail (tests/inject.h).
$(B)/tests/test-faults $(B)/tests/test-engine-faults: \
  override LDFLAGS += -Wl,--wrap=calloc
$(B)/tests/test-faults: override LDFLAGS += -Wl,--wrap=mmap

# test-simulate has the engine once more, on simulated threads.  A sanitizer
# does not know their stacks.
SIM := $(B)/simulate
SIM_OBJ := $(patsubst $(B)/%,$(SIM)/%,$(filter $(B)/filter/%,$(CORE_OBJ))) \
  $(patsubst tests/simulate/%.c,$(SIM)/%.o,$(wildcard tests/simulate/*.c))
$(SIM_OBJ) $(B)/tests/test-simulate.o $(B)/tests/test-simulate: SAN :=
$(SIM_OBJ) $(B)/tests/test-simulate.o: DEBUG := -DASYNCPOOL_DEBUG
$(SIM)/filter/%.o: filter/%.c Makefile
	@mkdir -p $(@D)
	$(COMPILE) -include tests/simulate/threads.h -c $< -o $@
$(SIM)/%.o: tests/simulate/%.c Makefile
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@
$(B)/tests/test-simulate: $(B)/tests/test-simulate.o $(SIM_OBJ)
	$(CC) $(LDFLAGS) -pthread $^ -o $@ $(GLIB_LIBS)

.SECONDARY:

# A program in the guest, which has no sanitizer's library.
$(B)/tests/guest-crash.o $(B)/tests/guest-crash: SAN :=
$(B)/tests/guest-crash: $(B)/tests/guest-crash.o
	$(CC) $(LDFLAGS) $^ -o $@

tests-build: $(MODULES) $(TOP) $(TEST_C) $(TEST_PLUGINS) \
  $(B)/benchmarks/delay-proxy $(B)/tests/guest-crash

check: all tests-build
	VARIANT=$(VARIANT) BUILD=$(B) TOOL= tests/run $(TESTS)
check-valgrind: all tests-build
	VARIANT=$(VARIANT) BUILD=$(B) TOOL=valgrind tests/run $(TESTS)
check-asan:
	$(MAKE) VARIANT=asan check
check-tsan:
	$(MAKE) VARIANT=tsan check
# With the variables of this make, such as TESTS="pool open".
check-trixie:
	tests/check-release trixie $(MAKEOVERRIDES)
check-32:
	tests/check-release bookworm/i386 $(MAKEOVERRIDES)

# More runs of test-simulate than `make check' has: make simulate SEEDS=N FROM=S
SEEDS ?= 40000
FROM ?= 3000000
simulate: $(B)/tests/test-simulate
	$(B)/tests/test-simulate --seeds $(SEEDS) --from $(FROM)

TIME ?= 600
KIND ?= pool
fuzz: tests-build
	tests/fuzz/run $(TIME) $(KIND)

# Mixed load with faults and reconnections for TIME seconds.
soak: all
	tests/soak $(TIME) $(B)

# Not a part of make check: it gets the sources of other projects.
SUITES ?=
peers:
	tests/peers $(SUITES)

# Crash tests for as long as CRASH_ROUNDS and CRASH_POINTS say.
crash-long: all tests-build
	VARIANT=$(VARIANT) BUILD=$(B) TOOL= TEST_TIMEOUT=36000 CRASH_LONG=1 \
	  CRASH_ROUNDS=$(or $(CRASH_ROUNDS),2000) \
	  CRASH_STEPS=$(or $(CRASH_STEPS),200) \
	  CRASH_POINTS=$(or $(CRASH_POINTS),all) \
	  CRASH_KILLS=$(or $(CRASH_KILLS),100) \
	  tests/run "crash*"
analyze:
	tests/analyze $(TOOLS)

# A server that a test kills has not written its counts.  A failed assertion's
# branch is not counted: no test takes it.
COVERAGE := build/coverage/coverage
coverage:
	@command -v gcovr >/dev/null || \
	  { echo "make coverage: gcovr is not installed" >&2; exit 1; }
	[ ! -d build/coverage ] || find build/coverage -name '*.gcda' -delete
	-$(MAKE) VARIANT=coverage check
	gcovr -r . -f filter/ -f plugin/ --exclude-branches-by-pattern '.*assert.*' \
	  --json $(COVERAGE).json build/coverage/filter build/coverage/plugin
	gcovr -r . -a $(COVERAGE).json --txt
	gcovr -r . -a $(COVERAGE).json --txt --branches

# The client of the benchmark's case overhead.
$(B)/benchmarks/interleave: $(B)/benchmarks/interleave.o
	$(CC) $(LDFLAGS) $(SAN) $^ -o $@ $(NBD_LIBS)

# The proxy that adds latency, for benchmarks and tests.
$(B)/benchmarks/delay-proxy: $(B)/benchmarks/delay-proxy.o
	$(CC) $(LDFLAGS) $(SAN) $^ -o $@

# How filter/limit.c and well-known rules follow models of devices: a table and
# a plot, which depend on no machine.
LIMIT := benchmarks/reference/limit
plot-limit: $(B)/tests/test-limit
	mkdir -p $(B)/limit
	$< --data $(B)/limit --table >$(LIMIT).txt
	gnuplot -e "dir='$(B)/limit'" benchmarks/limit.gnuplot >$(LIMIT).svg

demo: all
	benchmarks/run demo
bench: all
	benchmarks/run all
bench-kernel: all
	benchmarks/run kernel

# Manuals.
POD_RELEASE = --release=nbdkit-async --center="nbdkit-async"
define MANUAL
	@mkdir -p $(@D)
	podchecker -warnings -warnings $<
	pod2man --section=$(subst .,,$(suffix $@)) --name=$* $(POD_RELEASE) $< $@
endef
$(B)/%.1: %.pod
	$(MANUAL)
$(B)/%.3: %.pod
	$(MANUAL)
vpath %.pod filter plugin plugin/async

INSTALL ?= install
# nbdkit's own prefix, unless another one is given.
prefix = $(shell $(PKG_CONFIG) --variable=prefix nbdkit)
# On Fedora the directories in nbdkit.pc do not use its prefix.
nbdkit_prefix = $(shell $(PKG_CONFIG) --variable=prefix nbdkit)
NBDKIT_DIR = $(patsubst $(nbdkit_prefix)/%,$(prefix)/%,$(shell \
  $(PKG_CONFIG) --variable=$1 nbdkit))
filterdir = $(call NBDKIT_DIR,filterdir)
plugindir = $(call NBDKIT_DIR,plugindir)
mandir = $(prefix)/share/man
libdir = $(call NBDKIT_DIR,libdir)
includedir = $(call NBDKIT_DIR,includedir)
ASYNC_PC = -e 's|@prefix@|$(prefix)|' \
  -e 's|@libdir@|$(libdir:$(prefix)/%=$${prefix}/%)|' \
  -e 's|@includedir@|$(includedir:$(prefix)/%=$${prefix}/%)|'
install: all
	$(INSTALL) -D -m 755 $(B)/asyncpool.so \
	  $(DESTDIR)$(filterdir)/nbdkit-asyncpool-filter.so
	$(INSTALL) -D -m 755 $(B)/delaymem.so \
	  $(DESTDIR)$(plugindir)/nbdkit-delaymem-plugin.so
	for m in $(MAN); do \
	  $(INSTALL) -D -m 644 $$m $(DESTDIR)$(mandir)/man$${m##*.}/$${m##*/} \
	    || exit 1; done
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(includedir) \
	  plugin/async/nbdkit-async.h plugin/async/nbdkit-async-driver.h
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(libdir) $(ASYNC_LIB)
	$(INSTALL) -d $(DESTDIR)$(libdir)/pkgconfig
	sed $(ASYNC_PC) plugin/async/nbdkit-async.pc.in >$(B)/nbdkit-async.pc
	$(INSTALL) -m 644 $(B)/nbdkit-async.pc $(DESTDIR)$(libdir)/pkgconfig

DEPS_DEB := gcc g++ clang make pkg-config nbdkit nbdkit-plugin-dev \
  libnbd-dev libnbd-bin libglib2.0-dev python3-libnbd fio jq gnuplot-nox \
  e2fsprogs fdisk qemu-utils valgrind perl gnutls-bin procps time \
  qemu-system-x86 busybox-static nbd-client cpio kmod xz-utils dash \
  openssh-server nginx nbd-server nbdkit-plugin-python python3-boto3 openssl \
  debootstrap python3-apsw xfsprogs dmsetup
# Without the guest's packages: its kernel comes from Debian's apt only.
DEPS_RPM := gcc gcc-c++ clang make pkgconf-pkg-config nbdkit nbdkit-devel \
  nbdkit-nbd-plugin libnbd-devel libnbd glib2-devel python3-libnbd fio \
  fio-engine-nbd jq gnuplot e2fsprogs util-linux qemu-img valgrind perl \
  perl-Test-Harness perl-podlators perl-Pod-Checker gnutls-utils procps-ng \
  libasan libubsan libtsan time diffutils findutils nbd openssh-server nginx \
  nbdkit-ssh-plugin nbdkit-curl-plugin nbdkit-S3-plugin openssl nodejs-npm \
  python3-apsw
# An S3 server, which no distribution has (benchmarks/backends.sh).
S3RVER := s3rver@3.7.1
# What tests/peers needs beside these.
DEPS_PEERS := dpkg-dev autoconf automake libtool bison flex socat iproute2 \
  expect bsdextrautils xorriso libcurl4-gnutls-dev libext2fs-dev \
  libgnutls28-dev liblzma-dev zlib1g-dev libzstd-dev libssh-dev \
  libselinux1-dev libxml2-dev python3-dev python3-packaging
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)
deps:
	@if command -v apt-get >/dev/null; then \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -q -y --no-install-recommends $(DEPS_DEB); \
	elif command -v dnf >/dev/null; then $(SUDO) dnf install -y $(DEPS_RPM); \
	else echo "make deps knows apt-get and dnf only: install $(DEPS_DEB)"; \
	  exit 1; fi
	benchmarks/guest/fetch
	npm install --prefix build/s3rver --ignore-scripts --no-audit --no-fund \
	  $(S3RVER) || \
	  echo "No S3 server: tests with S3 will be skipped." >&2

deps-peers:
	$(SUDO) apt-get update -q
	$(SUDO) env DEBIAN_FRONTEND=noninteractive \
	  apt-get install -q -y --no-install-recommends $(DEPS_DEB) $(DEPS_PEERS)

clean:
	rm -rf build $(TOP)

.PHONY: all tests-build check check-asan check-tsan check-valgrind \
  check-trixie check-32 simulate analyze coverage fuzz soak crash-long peers \
  plot-limit demo bench bench-kernel install deps deps-peers clean
-include $(shell find $(B) -name '*.d' 2>/dev/null)

// Counts what an emulated host executes, by whose it is: a plugin for QEMU's TCG, plugin API version 1 (docs/devel/tcg-plugins.rst).
//
// Host or guest is told by VMRUN: a CPU is in its guest from there to the instruction behind it, where #VMEXIT comes back (AMD's
// manual, volume 2, section 15.5). Kernel or user is told by the half of the address space. So no address of either kernel is
// known here, and both may be the same kernel.
//
// At a mark, which is a NOP that nobody else uses (crates/lab/src/count.rs), a line is written:
//   mark N HOST_USER HOST_KERNEL GUEST_USER GUEST_KERNEL VMRUNS SYSTEM_CALLS
// the last two of the host alone. Behind the mark of a guest's first instruction come the places where the host's programs spent
// theirs since the mark of the program's start, one line for each block of code: its address, its instructions, its system calls.
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Of qemu-plugin.h, which Debian does not ship.
typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0 };
#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

enum { PROGRAM_STARTS = 1, GUEST_LIVES = 2 };
enum { HOST, GUEST };
enum { USER, KERNEL };

// One per emulated CPU: only that CPU's thread writes it.
struct cpu {
  uint64_t instructions[2][2];
  uint64_t vmruns, calls;
  int world;
} __attribute__((aligned(64)));
enum { MOST_CPUS = 64 };
static struct cpu cpus[MOST_CPUS];

// A block as it was translated. The same code translated again has the same block.
struct block {
  struct block *next;
  uint64_t at, runs;
  uint32_t length;
  uint8_t space, calls, is_return;
};
enum { BUCKETS = 1 << 16 };
static struct block *blocks[BUCKETS];

// Behind each VMRUN; a kernel has two or three.
enum { MOST_RETURNS = 8 };
static uint64_t returns[MOST_RETURNS];
static int known_returns;

// For the two tables above, and for the file.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *out;

static void executed(unsigned index, void *data) {
  struct block *block = data;
  struct cpu *cpu = &cpus[index];
  if (block->is_return) cpu->world = HOST;
  cpu->instructions[cpu->world][block->space] += block->length;
  if (cpu->world == HOST && block->space == USER) {
    block->runs++;
    cpu->calls += block->calls;
  }
}

static void entered(unsigned index, void *unused) {
  (void)unused;
  cpus[index].world = GUEST;
  cpus[index].vmruns++;
}

static void places(int write) {
  for (size_t i = 0; i < BUCKETS; i++)
    for (struct block *b = blocks[i]; b; b = b->next) {
      if (write && b->runs)
        fprintf(out, "at %" PRIx64 " %" PRIu64 " %" PRIu64 "\n", b->at, b->runs * b->length, b->runs * b->calls);
      b->runs = 0;
    }
}

static void marked(unsigned index, void *data) {
  (void)index;
  unsigned mark = (uintptr_t)data;
  struct cpu sum = {0};
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MOST_CPUS; i++) {
    for (int j = 0; j < 4; j++) sum.instructions[j / 2][j % 2] += cpus[i].instructions[j / 2][j % 2];
    sum.vmruns += cpus[i].vmruns;
    sum.calls += cpus[i].calls;
  }
  fprintf(out, "mark %u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", mark,
          sum.instructions[HOST][USER], sum.instructions[HOST][KERNEL], sum.instructions[GUEST][USER],
          sum.instructions[GUEST][KERNEL], sum.vmruns, sum.calls);
  if (mark == PROGRAM_STARTS || mark == GUEST_LIVES) places(mark == GUEST_LIVES);
  fflush(out);
  pthread_mutex_unlock(&lock);
}

static int is_return(uint64_t at) {
  for (int i = 0; i < known_returns; i++)
    if (returns[i] == at) return 1;
  return 0;
}

static struct block *find(struct block like) {
  struct block **bucket = &blocks[(like.at ^ like.at >> 16) % BUCKETS];
  for (struct block *b = *bucket; b; b = b->next)
    if (b->at == like.at && b->length == like.length && b->calls == like.calls && b->is_return == like.is_return) return b;
  struct block *made = malloc(sizeof *made);
  if (!made) abort();
  *made = like;
  made->next = *bucket;
  return *bucket = made;
}

static int is(const uint8_t *bytes, size_t size, const char *code, size_t length) {
  return size == length && !memcmp(bytes, code, length);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  size_t n = qemu_plugin_tb_n_insns(tb);
  struct block like = {.at = qemu_plugin_tb_vaddr(tb), .length = n};
  like.space = like.at >> 63 ? KERNEL : USER;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < n; i++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
    const uint8_t *bytes = qemu_plugin_insn_data(instruction);
    size_t size = qemu_plugin_insn_size(instruction);
    // nopl 0x5ce00NN(%rax,%rax,1)
    if (size == 8 && !memcmp(bytes, "\x0f\x1f\x84\x00", 4) && !memcmp(bytes + 5, "\x00\xce\x05", 3)) {
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, marked, NO_REGISTERS, (void *)(uintptr_t)bytes[4]);
    } else if (is(bytes, size, "\x0f\x01\xd8", 3)) {
      uint64_t behind = qemu_plugin_insn_vaddr(instruction) + size;
      if (!is_return(behind)) {
        if (known_returns == MOST_RETURNS) {
          fprintf(stderr, "plugin: there are more places with VMRUN than %d\n", MOST_RETURNS);
          abort();
        }
        returns[known_returns++] = behind;
      }
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, entered, NO_REGISTERS, NULL);
    } else if (is(bytes, size, "\x0f\x05", 2)) {
      like.calls++;
    }
  }
  like.is_return = is_return(like.at);
  struct block *block = find(like);
  pthread_mutex_unlock(&lock);
  qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, NO_REGISTERS, block);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++)
    if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
  if (!out) {
    fprintf(stderr, "plugin: cannot write the file of out=\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  return 0;
}

// For QEMU, preloaded: the lock that it forgets when a guest of an emulated guest writes CR8.
//
// With emulated SVM, helper_write_crN() calls cpu_interrupt(CPU_INTERRUPT_VIRQ) without QEMU's big lock when a nested guest
// writes CR8 while it has a virtual interrupt pending; tcg_handle_interrupt() asserts the lock, and the emulator aborts (seen
// with 7.2 and 10.0). Linux never writes CR8; EDK II does at the end of each interrupt. This takes the lock around it where the
// caller does not have it. In a QEMU whose TCG is not a module of its own, nothing calls this.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool (*locked)(void);
static void (*lock)(const char *, int);
static void (*unlock)(void);
static void (*original)(void *, int);

static int in_tcg(struct dl_phdr_info *object, size_t size, void *unused)
{
    (void)size, (void)unused;
    if (!object->dlpi_name || !strstr(object->dlpi_name, "accel-tcg-"))
        return 0;
    void *module = dlopen(object->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (!module)
        return 0;
    original = (void (*)(void *, int))dlsym(module, "tcg_handle_interrupt");
    return 1;
}

static void *either(const char *now, const char *before)
{
    void *symbol = dlsym(RTLD_DEFAULT, now);
    return symbol ? symbol : dlsym(RTLD_DEFAULT, before);
}

void tcg_handle_interrupt(void *cpu, int mask);

static void find(void)
{
    locked = (bool (*)(void))either("bql_locked", "qemu_mutex_iothread_locked");
    lock = (void (*)(const char *, int))either("bql_lock_impl", "qemu_mutex_lock_iothread_impl");
    unlock = (void (*)(void))either("bql_unlock", "qemu_mutex_unlock_iothread");
    dl_iterate_phdr(in_tcg, NULL);
    if (!locked || !lock || !unlock || !original || original == tcg_handle_interrupt) {
        fprintf(stderr, "skep's work-around for guests with firmware does not fit this QEMU\n");
        abort();
    }
}

void tcg_handle_interrupt(void *cpu, int mask)
{
    if (!original)
        find();
    bool mine = !locked();
    if (mine)
        lock(__FILE__, __LINE__);
    original(cpu, mask);
    if (mine)
        unlock();
}

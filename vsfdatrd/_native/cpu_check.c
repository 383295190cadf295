/* CPU feature detection. Compiled for any CPU, unlike the rest of cpu_*.c, vnni_*.c and amx_*.c. */
#ifdef __linux__
#define _GNU_SOURCE /* for syscall */
#endif
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef FDATRD_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Returns 1 if FDATRD_MAX_ISA (system/instructions.py) is empty or one of these names, ignoring case. */
static int allowed(const char *const names[], int count) {
    const char *cap = getenv("FDATRD_MAX_ISA");
    char low[16] = "";
    if (!cap || !*cap) return 1;
    for (size_t i = 0; cap[i] && i + 1 < sizeof low; i++)
        low[i] = (char)(cap[i] >= 'A' && cap[i] <= 'Z' ? cap[i] + 32 : cap[i]);
    for (int i = 0; i < count; i++)
        if (!strcmp(low, names[i])) return 1;
    return 0;
}

/* Caps that allow AVX2, oldest first; the functions below accept all of them from some entry on. */
static const char *const CAPS[] = {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

/* Register sets that the operating system saves on context switches, as bits of XCR0. */
static unsigned kept_registers(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Returns 1 if cpu_*.c can run: the CPU has AVX2 and FMA, and the cap is not below them. */
EXPORT int64_t fdatrd_cpu_supported(void) {
    unsigned a, b, c, d;
    if (!allowed(CAPS, 5) || (kept_registers() & 0x6) != 0x6) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

/* Returns 1 if the CPU has AVX-512 as well, and the cap is not below it. */
EXPORT int64_t fdatrd_cpu_avx512(void) {
    unsigned a, b, c, d;
    if (!allowed(CAPS + 1, 4) || (kept_registers() & 0xE6) != 0xE6) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F);
}

/* Returns 1 if vnni_*.c can run: the CPU has AVX-512 with VNNI as well, and the cap is not below it. */
EXPORT int64_t fdatrd_cpu_vnni(void) {
    unsigned a, b, c, d;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if (!allowed(CAPS + 2, 3) || !fdatrd_cpu_supported() || (kept_registers() & 0xE6) != 0xE6) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & needed) == needed && (c & bit_AVX512VNNI);
}

/* Returns 1 if the CPU has what amx_*.c need: VNNI, tiles and products of their bytes; and the cap is not below AMX. They
 * must not run before fdatrd_cpu_request_amx has returned 1.
 */
EXPORT int64_t fdatrd_cpu_amx_int8(void) {
#ifdef FDATRD_HAS_AMX
    unsigned a, b, c, d;
    if (!allowed(CAPS + 4, 1) || !fdatrd_cpu_vnni() || (kept_registers() & 0x60000) != 0x60000) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 24) && (d & 1u << 25);
#else
    return 0;
#endif
}

/* Asks Linux to save tiles for the threads of this process (arch_prctl, from 5.16 on). Returns 1 if it does. */
EXPORT int64_t fdatrd_cpu_request_amx(void) {
#ifdef FDATRD_HAS_AMX
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, a bit of XCR0 */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}

#else
EXPORT int64_t fdatrd_cpu_supported(void) { return 0; }
EXPORT int64_t fdatrd_cpu_vnni(void) { return 0; }
EXPORT int64_t fdatrd_cpu_avx512(void) { return 0; }
EXPORT int64_t fdatrd_cpu_amx_int8(void) { return 0; }
EXPORT int64_t fdatrd_cpu_request_amx(void) { return 0; }
#endif

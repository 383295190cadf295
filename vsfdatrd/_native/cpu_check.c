/* What the processor is able to. Compiled for any processor, unlike the rest of cpu_*.c. */
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* 1 if FDATRD_MAX_ISA (system/instructions.py) says nothing, or one of these in any case of letters. */
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

/* From the oldest to the newest that each of the functions below may use. */
static const char *const CAPS[] = {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

/* Registers that the operating system keeps for a process, as bits of XCR0. */
static unsigned kept_registers(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* 1 if cpu_*.c runs here: AVX2 and fused multiply-adds, and no cap below them. */
EXPORT int64_t fdatrd_cpu_supported(void) {
    unsigned a, b, c, d;
    if (!allowed(CAPS, 5) || (kept_registers() & 0x6) != 0x6) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

/* 1 if the processor has AVX-512 as well, and no cap below it. */
EXPORT int64_t fdatrd_cpu_wider(void) {
    unsigned a, b, c, d;
    if (!allowed(CAPS + 1, 4) || (kept_registers() & 0xE6) != 0xE6) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F);
}

#else
EXPORT int64_t fdatrd_cpu_supported(void) { return 0; }
EXPORT int64_t fdatrd_cpu_wider(void) { return 0; }
#endif

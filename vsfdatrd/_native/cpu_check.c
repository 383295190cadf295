/* What the processor is able to. Compiled for any processor, unlike the rest of cpu_*.c. */
#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Registers that the operating system keeps for a process, as bits of XCR0. */
static unsigned kept_registers(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* 1 if cpu_*.c runs here: AVX2 and fused multiply-adds. */
EXPORT int64_t fdatrd_cpu_supported(void) {
    unsigned a, b, c, d;
    if ((kept_registers() & 0x6) != 0x6) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

/* 1 if the processor has AVX-512 as well. */
EXPORT int64_t fdatrd_cpu_wider(void) {
    unsigned a, b, c, d;
    if ((kept_registers() & 0xE6) != 0xE6) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F);
}

#else
EXPORT int64_t fdatrd_cpu_supported(void) { return 0; }
EXPORT int64_t fdatrd_cpu_wider(void) { return 0; }
#endif

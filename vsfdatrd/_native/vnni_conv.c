/* cpu_conv.c for CPUs that have AVX-512 with VNNI: functions fdatrd_vnni_*. See cpu_math.h. */
#define FDATRD_VNNI
#include "cpu_conv.c"

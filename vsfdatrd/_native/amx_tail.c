/* cpu_tail.c for CPUs that have AMX, AVX-512 and VNNI: functions fdatrd_amx_*. See cpu_amx.h. */
#define FDATRD_AMX
#include "cpu.h"
#ifdef FDATRD_HAS_AMX
#include "cpu_tail.c"
#endif

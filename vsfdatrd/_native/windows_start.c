/* Start-up code of the plugin for Windows: what a C library links into every DLL, as far as this plugin needs it.
 *
 * ziglang would link that of mingw-w64, but compiles all 440 files of this library first, which takes a minute of
 * processor time. hatch_build.py defines FDATRD_WINDOWS_START when it compiles with ziglang for Windows; other compilers
 * bring start-up code of their own. */
#ifdef FDATRD_WINDOWS_START
#include <windows.h> /* of mingw-w64, headers alone */

/* Thread-local variables: the linker collects them between these two, and Windows copies them for every thread. */
__attribute__((section(".tls"))) char _tls_start = 0;
__attribute__((section(".tls$ZZZ"))) char _tls_end = 0;
ULONG _tls_index = 0;

/* The linker puts the address of `_tls_used` into the DLL's header. */
__attribute__((section(".rdata$T"))) const IMAGE_TLS_DIRECTORY _tls_used = {
    .StartAddressOfRawData = (ULONG_PTR)&_tls_start,
    .EndAddressOfRawData = (ULONG_PTR)&_tls_end,
    .AddressOfIndex = (ULONG_PTR)&_tls_index,
};

/* Its address in the program means that the program uses floating point numbers. */
int _fltused = 0;

/* Called by Windows when it loads and unloads the DLL, and when threads start and end. There is nothing to do: the
 * functions of C that the plugin calls are in libraries of Windows, which start by themselves. */
BOOL WINAPI DllMainCRTStartup(HINSTANCE library, DWORD reason, LPVOID reserved) {
    (void)library;
    (void)reason;
    (void)reserved;
    return TRUE;
}
#else
typedef int unused; /* C allows no file without a declaration */
#endif

/* Marks the functions of the plugin's library that Python calls through ctypes. */
#ifndef FDATRD_EXPORT_H
#define FDATRD_EXPORT_H

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#endif

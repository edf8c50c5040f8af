# Toolchain: compiles the C++ tests for aarch64 and runs them in qemu's user-mode emulation (on
# Debian: g++-aarch64-linux-gnu, qemu-user). Speed means nothing there, results do.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static) # no aarch64 libraries to look for at run time
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)

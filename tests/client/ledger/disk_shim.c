/* SPDX-License-Identifier: Apache-2.0
 * Logs what a process does to the files of one folder, for LD_PRELOAD: every write with its bytes, every sync, every change of names.
 * WARDROUND_SHIM_FOLDER is the folder, WARDROUND_SHIM_LOG the log. A record: one letter, four 64-bit numbers (inode, offset, length,
 * length of the text), the text (names), the bytes. A record is one write, so threads and processes may share the log; it comes after its
 * call, so the order of records is the order of calls wherever one waits for another.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static int log_file = -1;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static const char *folder(void) { const char *f = getenv("WARDROUND_SHIM_FOLDER"); return f ? f : "/nonexistent"; }

static int ours_path(const char *path) { return strncmp(path, folder(), strlen(folder())) == 0; }

static int ours_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return ours_path(path);
}

static uint64_t inode_of(int fd) { struct stat s; return fstat(fd, &s) ? 0 : s.st_ino; }

static void record(char kind, uint64_t inode, uint64_t offset, const char *text, const void *bytes, uint64_t length) {
    if (!real_open) real_open = real("open");
    if (log_file < 0) log_file = real_open(getenv("WARDROUND_SHIM_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    uint64_t head[4] = {inode, offset, length, strlen(text)};
    struct iovec parts[4] = {{&kind, 1}, {head, sizeof head}, {(void *)text, strlen(text)}, {(void *)bytes, bytes ? length : 0}};
    writev(log_file, parts, 4);
}

static int log_open(const char *path, int fd, int flags) {
    if (fd >= 0 && ours_path(path)) {
        if (flags & O_CREAT) record('c', inode_of(fd), 0, path, 0, 0);
        if (flags & O_TRUNC) record('t', inode_of(fd), 0, "", 0, 0);
    }
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list args; va_start(args, flags); int mode = va_arg(args, int); va_end(args);
    if (!real_open) real_open = real("open");
    return log_open(path, real_open(path, flags, mode), flags);
}
int open64(const char *path, int flags, ...) {
    va_list args; va_start(args, flags); int mode = va_arg(args, int); va_end(args);
    int (*call)(const char *, int, ...) = real("open64");
    return log_open(path, call(path, flags, mode), flags);
}
int openat(int at, const char *path, int flags, ...) {
    va_list args; va_start(args, flags); int mode = va_arg(args, int); va_end(args);
    int (*call)(int, const char *, int, ...) = real("openat");
    return log_open(path, call(at, path, flags, mode), flags);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
    ssize_t (*call)(int, const void *, size_t, off64_t) = real("pwrite64");
    ssize_t done = call(fd, data, n, offset);
    if (done > 0 && ours_fd(fd)) record('w', inode_of(fd), offset, "", data, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return pwrite64(fd, data, n, offset); }
ssize_t write(int fd, const void *data, size_t n) {
    if (!real_write) real_write = real("write");
    ssize_t done = real_write(fd, data, n);
    if (done > 0 && fd > 2 && ours_fd(fd)) record('w', inode_of(fd), lseek(fd, 0, SEEK_CUR) - done, "", data, done);
    return done;
}
int ftruncate64(int fd, off64_t size) {
    int (*call)(int, off64_t) = real("ftruncate64");
    int done = call(fd, size);
    if (!done && ours_fd(fd)) record('t', inode_of(fd), size, "", 0, 0);
    return done;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fsync(int fd) {
    int (*call)(int) = real("fsync");
    int done = call(fd);
    if (!done && ours_fd(fd)) record('s', inode_of(fd), 0, "", 0, 0);
    return done;
}
int fdatasync(int fd) {
    int (*call)(int) = real("fdatasync");
    int done = call(fd);
    if (!done && ours_fd(fd)) record('s', inode_of(fd), 0, "", 0, 0);
    return done;
}
static void log_unlink(const char *path, int done) { if (!done && ours_path(path)) record('u', 0, 0, path, 0, 0); }
int unlink(const char *path) { int (*call)(const char *) = real("unlink"); int done = call(path); log_unlink(path, done); return done; }
static void log_rename(const char *from, const char *to, int done) {
    char both[8200];
    if (done || !ours_path(to)) return;
    snprintf(both, sizeof both, "%s\n%s", from, to);
    record('r', 0, 0, both, 0, 0);
}
int rename(const char *from, const char *to) {
    int (*call)(const char *, const char *) = real("rename");
    int done = call(from, to);
    log_rename(from, to, done);
    return done;
}

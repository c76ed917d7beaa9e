/*
 * The loops of scripts/bench that an interpreter would be too slow for. Each command does one thing many times, measures
 * it itself, and prints the nanoseconds it took, so that starting the program counts for nothing.
 *
 * Compiled at run time: cc -O2 -o syscalls syscalls.c. What must hold: a call that fails ends the program with status 1
 * and the name of the call, and no time is printed, so that a workload cannot be fast by not doing its work.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1 << 20)
#define PAGE 4096

static void fail(const char *call, const char *on) {
    fprintf(stderr, "syscalls: %s %s: %s\n", call, on, strerror(errno));
    exit(1);
}

static long long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

/* A small generator with a state of its own: the same numbers in every run. */
static unsigned long long state = 88172645463325252ULL;
static unsigned long long number(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static char *name(const char *format, ...) {
    char *text;
    va_list rest;
    va_start(rest, format);
    if (vasprintf(&text, format, rest) < 0)
        fail("vasprintf", format);
    va_end(rest);
    return text;
}

/* --- lists of paths ------------------------------------------------------------------------------------------- */

static char **paths;
static size_t path_count;

/* Reads a file of one path per line into `paths`. */
static void read_list(const char *file) {
    FILE *list = fopen(file, "r");
    char *line = NULL;
    size_t size = 0, room = 0;
    ssize_t length;
    if (!list)
        fail("open", file);
    while ((length = getline(&line, &size, list)) > 0) {
        if (line[length - 1] == '\n')
            line[length - 1] = 0;
        if (path_count == room) {
            room = room ? room * 2 : 1024;
            paths = realloc(paths, room * sizeof *paths);
            if (!paths)
                fail("realloc", file);
        }
        paths[path_count++] = strdup(line);
    }
    free(line);
    fclose(list);
    if (path_count == 0) {
        fprintf(stderr, "syscalls: %s has no paths\n", file);
        exit(1);
    }
}

/* --- one process ---------------------------------------------------------------------------------------------- */

static char block[BLOCK];

static void do_stat(long count) {
    struct stat found;
    for (long i = 0; i < count; i++)
        if (lstat(paths[i % path_count], &found) != 0)
            fail("lstat", paths[i % path_count]);
}

static void do_missing(long count) {
    struct stat found;
    for (long i = 0; i < count; i++)
        if (lstat(paths[i % path_count], &found) == 0 || errno != ENOENT)
            fail("lstat of a name that should be missing", paths[i % path_count]);
}

static void do_open_read_close(long count) {
    for (long i = 0; i < count; i++) {
        const char *path = paths[i % path_count];
        int file = open(path, O_RDONLY | O_NOFOLLOW);
        if (file < 0)
            fail("open", path);
        if (read(file, block, PAGE) < 0)
            fail("read", path);
        close(file);
    }
}

static void do_append(void) {
    for (size_t i = 0; i < path_count; i++) {
        int file = open(paths[i], O_WRONLY | O_APPEND);
        if (file < 0)
            fail("open", paths[i]);
        if (write(file, "x", 1) != 1)
            fail("write", paths[i]);
        close(file);
    }
}

static void read_whole(const char *path) {
    int file = open(path, O_RDONLY | O_NOFOLLOW);
    ssize_t got;
    if (file < 0)
        fail("open", path);
    while ((got = read(file, block, 128 << 10)) > 0)
        ;
    if (got < 0)
        fail("read", path);
    close(file);
}

static void do_read_all(void) {
    for (size_t i = 0; i < path_count; i++)
        read_whole(paths[i]);
}

static int visit(const char *path, const struct stat *found, int type, struct FTW *at) {
    (void)found;
    (void)at;
    if (type == FTW_NS || type == FTW_DNR)
        fail("walk", path);
    return 0;
}

/* Every directory listed, every entry's status read. */
static void do_walk(const char *root) {
    if (nftw(root, visit, 64, FTW_PHYS) != 0)
        fail("nftw", root);
}

static void do_seq_write(const char *path, long long size) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0)
        fail("open", path);
    for (long long at = 0; at < size; at += BLOCK)
        if (write(file, block, BLOCK) != BLOCK)
            fail("write", path);
    if (fsync(file) != 0)
        fail("fsync", path);
    close(file);
}

static void do_seq_read(const char *path, long long size) {
    int file = open(path, O_RDONLY);
    long long at = 0;
    ssize_t got;
    if (file < 0)
        fail("open", path);
    while ((got = read(file, block, BLOCK)) > 0)
        at += got;
    if (got < 0 || at != size)
        fail("read", path);
    close(file);
}

static void do_random(const char *path, long count, int writing) {
    struct stat found;
    int file = open(path, writing ? O_WRONLY : O_RDONLY);
    if (file < 0 || fstat(file, &found) != 0)
        fail("open", path);
    for (long i = 0; i < count; i++) {
        off_t at = (off_t)(number() % (unsigned long long)(found.st_size / PAGE)) * PAGE;
        ssize_t done = writing ? pwrite(file, block, PAGE, at) : pread(file, block, PAGE, at);
        if (done != PAGE)
            fail(writing ? "pwrite" : "pread", path);
    }
    if (writing && fsync(file) != 0)
        fail("fsync", path);
    close(file);
}

static void do_create_unlink(const char *directory, long count) {
    char path[PAGE];
    for (long i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/file-%ld", directory, i);
        int file = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (file < 0)
            fail("create", path);
        close(file);
        if (unlink(path) != 0)
            fail("unlink", path);
    }
}

/* As dpkg unpacks: each file under another name, synced, renamed into place; the directory synced at the end. */
static void do_replace(const char *directory, long count) {
    char *path, *fresh;
    for (long i = 0; i < count; i++) {
        path = name("%s/file-%ld", directory, i);
        fresh = name("%s.dpkg-new", path);
        int file = open(fresh, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (file < 0)
            fail("create", fresh);
        if (write(file, block, 3 * PAGE) != 3 * PAGE)
            fail("write", fresh);
        if (fsync(file) != 0)
            fail("fsync", fresh);
        close(file);
        if (rename(fresh, path) != 0)
            fail("rename", fresh);
        free(path);
        free(fresh);
    }
    int opened = open(directory, O_RDONLY | O_DIRECTORY);
    if (opened < 0 || fsync(opened) != 0)
        fail("fsync", directory);
    close(opened);
}

/* One client of several: makes files, looks at them, removes them, in a directory of its own. */
static void do_client(const char *directory, long count) {
    struct stat found;
    char *own = name("%s/client-%d", directory, getpid()), *path;
    if (mkdir(own, 0755) != 0)
        fail("mkdir", own);
    for (long i = 0; i < count; i++) {
        path = name("%s/file-%ld", own, i);
        int file = open(path, O_RDWR | O_CREAT | O_EXCL, 0644);
        if (file < 0)
            fail("create", path);
        if (write(file, block, PAGE) != PAGE)
            fail("write", path);
        close(file);
        if (lstat(path, &found) != 0)
            fail("lstat", path);
        if (unlink(path) != 0)
            fail("unlink", path);
        free(path);
    }
    if (rmdir(own) != 0)
        fail("rmdir", own);
    free(own);
}

/* --- data ----------------------------------------------------------------------------------------------------- */

/* Not timed: `count` empty files, a thousand to a directory. */
static void make_files(const char *directory, long count) {
    char path[PAGE];
    for (long i = 0; i < count; i++) {
        if (i % 1000 == 0) {
            snprintf(path, sizeof path, "%s/%04ld", directory, i / 1000);
            if (mkdir(path, 0755) != 0)
                fail("mkdir", path);
        }
        snprintf(path, sizeof path, "%s/%04ld/file-%ld", directory, i / 1000, i);
        if (mknod(path, S_IFREG | 0644, 0) != 0)
            fail("mknod", path);
    }
}

/* Not timed: a file of pseudo-random bytes, so that nothing below can store it as a hole or compress it. */
static void make_data(const char *path, long long size) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0)
        fail("open", path);
    for (long long at = 0; at < size; at += BLOCK) {
        for (size_t i = 0; i < BLOCK; i += sizeof state) {
            unsigned long long word = number();
            memcpy(block + i, &word, sizeof word);
        }
        if (write(file, block, BLOCK) != BLOCK)
            fail("write", path);
    }
    if (fsync(file) != 0)
        fail("fsync", path);
    close(file);
}

/* --- several processes ---------------------------------------------------------------------------------------- */

/*
 * Runs `work` in `count` processes, which begin together, and waits for all of them. The first step, not timed, is to
 * fork: they wait for the pipe to be closed.
 */
static long long in_processes(long count, void (*work)(const char *, long), const char *text, long share) {
    int gate[2], status;
    char byte;
    if (pipe(gate) != 0)
        fail("pipe", "");
    for (long i = 0; i < count; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork", "");
        if (child == 0) {
            close(gate[1]);
            if (read(gate[0], &byte, 1) != 0)
                fail("read", "the gate");
            work(text, share);
            exit(0);
        }
    }
    close(gate[0]);
    long long started = now();
    close(gate[1]);
    for (long i = 0; i < count; i++)
        if (wait(&status) < 0 || status != 0) {
            fprintf(stderr, "syscalls: a process failed\n");
            exit(1);
        }
    return now() - started;
}

static void reader(const char *text, long share) {
    (void)text;
    (void)share;
    do_read_all();
}

static const char *usage =
    "usage: syscalls stat|missing|open-read-close LIST COUNT | read-all LIST | append LIST\n"
    "       syscalls walk DIR | create-unlink DIR COUNT | replace DIR COUNT\n"
    "       syscalls seq-write|seq-read FILE BYTES | rand-read|rand-write FILE COUNT\n"
    "       syscalls readers LIST PROCESSES | clients DIR PROCESSES COUNT\n"
    "       syscalls make-files DIR COUNT | make-data FILE BYTES\n";

int main(int argc, char **argv) {
    if (argc < 3) {
        fputs(usage, stderr);
        return 2;
    }
    const char *command = argv[1], *on = argv[2];
    long long count = argc > 3 ? atoll(argv[3]) : 0;
    long long second = argc > 4 ? atoll(argv[4]) : 0, started, took = -1;

#define is(word) (strcmp(command, word) == 0)
    if (is("stat") || is("missing") || is("open-read-close") || is("read-all") || is("append") || is("readers"))
        read_list(on);
    /* No page of it is touched for the first time while the clock runs. */
    memset(block, 'x', sizeof block);
    started = now();
    if (is("stat"))
        do_stat(count);
    else if (is("missing"))
        do_missing(count);
    else if (is("open-read-close"))
        do_open_read_close(count);
    else if (is("read-all"))
        do_read_all();
    else if (is("append"))
        do_append();
    else if (is("walk"))
        do_walk(on);
    else if (is("create-unlink"))
        do_create_unlink(on, count);
    else if (is("replace"))
        do_replace(on, count);
    else if (is("seq-write"))
        do_seq_write(on, count);
    else if (is("seq-read"))
        do_seq_read(on, count);
    else if (is("rand-read"))
        do_random(on, count, 0);
    else if (is("rand-write"))
        do_random(on, count, 1);
    else if (is("readers"))
        took = in_processes(count, reader, on, 0);
    else if (is("clients"))
        took = in_processes(count, do_client, on, second / count);
    else if (is("make-files"))
        make_files(on, count);
    else if (is("make-data"))
        make_data(on, count);
    else {
        fputs(usage, stderr);
        return 2;
    }
    printf("%lld\n", took >= 0 ? took : now() - started);
    return 0;
}

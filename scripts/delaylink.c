/*
 * delaylink: a link between two network namespaces with a rate, a delay and a queue.
 *
 *     delaylink NETNS NEAR FAR BITS_PER_SECOND DELAY_US QUEUE_BYTES
 *
 * Creates the interface NEAR in the caller's namespace and FAR in the one named NETNS, and carries
 * packets between them until it is ended, whereupon both vanish. Rate, delay (one way) and queue hold for
 * each direction by itself; rate 0 is no limit. It stands in for `tc netem`, which many kernels lack.
 *
 * Both ends are TUN devices that take segmentation offload, so that one read brings up to 64 KiB of TCP, and
 * a gigabit costs a few per cent of a core. A packet leaves when the wire has been free for its length, plus
 * the delay; what would wait behind more than QUEUE_BYTES is dropped, as a router's queue does.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 10,         /* struct virtio_net_hdr, which the device puts before each packet */
    LARGEST = 70000,     /* header and a packet of 64 KiB */
    BURST = 64,          /* packets taken in before those that are due are looked at again */
};

static const uint64_t SECOND = 1000000000; /* all times are nanoseconds of CLOCK_MONOTONIC */

struct packet {
    struct packet *next;
    uint64_t due;
    size_t size;
    char bytes[];
};

struct direction {
    int from, to;
    double seconds_per_byte;
    uint64_t delay;
    double queue_limit;    /* nanoseconds of waiting that QUEUE_BYTES amount to */
    uint64_t wire_free_at;
    struct packet *first, **end;
};

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static int open_tun(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (device < 0)
        err(1, "/dev/net/tun");
    if (strlen(name) >= IFNAMSIZ)
        errx(1, "%s: name too long", name);
    strcpy(request.ifr_name, name);
    if (ioctl(device, TUNSETIFF, &request))
        err(1, "%s", name);
    if (ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
        err(1, "%s: offload", name);
    return device;
}

/* Hand over every packet whose time has come. */
static void deliver(struct direction *direction)
{
    uint64_t time = now();
    while (direction->first && direction->first->due <= time) {
        struct packet *packet = direction->first;
        /* A failed write is an interface that is down: the packet is lost, as on a wire. */
        ssize_t written = write(direction->to, packet->bytes, packet->size);
        (void)written;
        direction->first = packet->next;
        if (!direction->first)
            direction->end = &direction->first;
        free(packet);
    }
}

/* Take one packet in, or drop it; false if there is none. */
static bool accept_one(struct direction *direction, char *buffer)
{
    ssize_t size = read(direction->from, buffer, LARGEST);
    if (size <= HEADER)
        return false;
    uint64_t time = now();
    if (direction->wire_free_at < time)
        direction->wire_free_at = time;
    if ((double)(direction->wire_free_at - time) > direction->queue_limit)
        return true;
    struct packet *packet = malloc(sizeof *packet + (size_t)size);
    if (!packet)
        return true;
    direction->wire_free_at += (uint64_t)((double)(size - HEADER) * direction->seconds_per_byte * SECOND);
    *packet = (struct packet){.due = direction->wire_free_at + direction->delay, .size = (size_t)size};
    memcpy(packet->bytes, buffer, (size_t)size);
    *direction->end = packet;
    direction->end = &packet->next;
    return true;
}

/* Sleep until a packet comes in or one is due. */
static void wait_for_work(const struct direction *direction)
{
    struct pollfd readable = {.fd = direction->from, .events = POLLIN};
    struct timespec timeout;
    if (direction->first) {
        uint64_t time = now();
        uint64_t due = direction->first->due;
        uint64_t left = due > time ? due - time : 0;
        timeout = (struct timespec){.tv_sec = (time_t)(left / SECOND), .tv_nsec = (long)(left % SECOND)};
    }
    ppoll(&readable, 1, direction->first ? &timeout : NULL, NULL);
}

static void *carry(void *argument)
{
    struct direction *direction = argument;
    char *buffer = malloc(LARGEST);
    if (!buffer)
        err(1, NULL);
    direction->end = &direction->first;
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* of this thread: delays are to the microsecond */
    for (;;) {
        deliver(direction);
        int taken = 0;
        while (taken < BURST && accept_one(direction, buffer))
            taken++;
        if (!taken)
            wait_for_work(direction);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 7) {
        fprintf(stderr, "usage: delaylink NETNS NEAR FAR BITS_PER_SECOND DELAY_US QUEUE_BYTES\n");
        return 2;
    }
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", arguments[1]);
    double rate = atof(arguments[4]) / 8;
    double seconds_per_byte = rate > 0 ? 1 / rate : 0;
    uint64_t delay = strtoull(arguments[5], NULL, 10) * 1000;
    double queue_limit = strtod(arguments[6], NULL) * seconds_per_byte * (double)SECOND;

    int near = open_tun(arguments[2]);
    int namespace = open(path, O_RDONLY | O_CLOEXEC);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET))
        err(1, "%s", path);
    int far = open_tun(arguments[3]);
    puts("up");
    fflush(stdout);

    struct direction there = {near, far, seconds_per_byte, delay, queue_limit, 0, NULL, NULL};
    struct direction back = {far, near, seconds_per_byte, delay, queue_limit, 0, NULL, NULL};
    pthread_t thread;
    if (pthread_create(&thread, NULL, carry, &there))
        errx(1, "no thread");
    carry(&back);
}

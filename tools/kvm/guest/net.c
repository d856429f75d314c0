// SPDX-License-Identifier: GPL-2.0-only
/*
 * The network: the loopback interface, and with unikvm.net= on the kernel
 * command line the first other one, by DHCP or with a given address. Those
 * that are plugged in later come by the agent.
 */
#include "init.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATIENCE	2000	/* ms for the interface to appear */
#define PLUG_PATIENCE	10000	/* the same for one that is plugged in: its bus is looked at first */
#define NAP		5000	/* us between two looks */
#define TRIES		5
#define ANSWER		1000	/* ms for an answer to one try */
#define MAX_SERVERS	3	/* of names: what resolv.conf(5) has room for */
#define SERVER_PORT	67
#define CLIENT_PORT	68
#define ADVERTISED	3000	/* ms for a router's advertisement; the link is up after one second */
#define OPT6_RDNSS	25
#define COOKIE		0x63825363
#define BOOTREPLY	2
#define BROADCAST	0x8000

enum message { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5 };
enum option {
	OPT_PAD = 0, OPT_MASK = 1, OPT_ROUTER = 3, OPT_DNS = 6, OPT_MTU = 26,
	OPT_ADDRESS = 50, OPT_TYPE = 53, OPT_SERVER = 54, OPT_WANTED = 55, OPT_END = 255
};

/* A DHCP message (RFC 2131) as it goes over the wire. */
struct packet {
	struct iphdr ip;
	struct udphdr udp;
	uint8_t op, htype, hlen, hops;
	uint32_t xid;
	uint16_t secs, flags;
	uint32_t ciaddr, yiaddr, siaddr, giaddr;
	uint8_t chaddr[16];
	char sname[64], file[128];
	uint32_t cookie;
	uint8_t options[1024];
} __attribute__((packed));

#define FIXED		offsetof(struct packet, options)
#define REQUEST_OPTIONS	64	/* bytes; some servers want them padded */

/* What an interface gets. Addresses in network order; 0: none. */
struct lease {
	uint32_t address, mask, router, server;
	uint32_t dns[MAX_SERVERS];
	struct in6_addr dns6[MAX_SERVERS];	/* of a router's advertisement */
	unsigned int ndns, ndns6, mtu;
	enum message type;
};

static struct lease lease;

/* --- the interface --- */

/* Is the interface one of the device whose directory below /sys/devices has `device` in its name? */
static bool belongs(const char *name, const char *device)
{
	char path[sizeof("/sys/class/net/") + IFNAMSIZ], target[PATH_MAX];
	ssize_t len;

	snprintf(path, sizeof(path), "/sys/class/net/%.*s", IFNAMSIZ - 1, name);
	len = readlink(path, target, sizeof(target) - 1);
	if (len < 0)
		return false;
	target[len] = '\0';
	return strstr(target, device);
}

/* The first interface but the loopback, of `device` if that is not NULL; it is waited for. */
static bool first_interface(const char *device, int patience, char name[IFNAMSIZ])
{
	long long deadline = now_ms() + patience;
	struct dirent *entry;
	bool found = false;
	DIR *dir;

	for (;;) {
		dir = opendir("/sys/class/net");
		if (!dir)
			return false;
		while (!found && (entry = readdir(dir))) {
			found = entry->d_name[0] != '.' && strcmp(entry->d_name, "lo") &&
				(!device || belongs(entry->d_name, device));
			if (found)
				snprintf(name, IFNAMSIZ, "%.*s", IFNAMSIZ - 1, entry->d_name);
		}
		closedir(dir);
		if (found || now_ms() >= deadline)
			return found;
		nap(NAP);
	}
}

static int interface_ioctl(int fd, unsigned long request, const char *name, struct ifreq *ifr)
{
	snprintf(ifr->ifr_name, IFNAMSIZ, "%s", name);
	return ioctl(fd, request, ifr);
}

static int bring_up(int fd, const char *name)
{
	struct ifreq ifr = { 0 };

	if (interface_ioctl(fd, SIOCGIFFLAGS, name, &ifr))
		return -1;
	ifr.ifr_flags |= IFF_UP;
	return interface_ioctl(fd, SIOCSIFFLAGS, name, &ifr);
}

static void set_sockaddr(struct sockaddr *to, uint32_t address)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = address };

	memcpy(to, &in, sizeof(in));
}

/* Give the interface what `lease` says. NULL, or what could not be done. */
static const char *configure(int fd, const char *name)
{
	struct ifreq ifr = { 0 };
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };

	ifr.ifr_mtu = lease.mtu;
	if (lease.mtu && interface_ioctl(fd, SIOCSIFMTU, name, &ifr))
		complain("%s: an MTU of %u: %s", name, lease.mtu, strerror(errno));
	set_sockaddr(&ifr.ifr_addr, lease.address);
	if (interface_ioctl(fd, SIOCSIFADDR, name, &ifr))
		return "its address";
	set_sockaddr(&ifr.ifr_netmask, lease.mask);
	if (lease.mask && interface_ioctl(fd, SIOCSIFNETMASK, name, &ifr))
		return "its netmask";
	if (!lease.router)
		return NULL;
	set_sockaddr(&route.rt_gateway, lease.router);
	set_sockaddr(&route.rt_dst, 0);
	set_sockaddr(&route.rt_genmask, 0);
	return ioctl(fd, SIOCADDRT, &route) && errno != EEXIST ? "its route" : NULL;
}

/* --- DHCP --- */

static uint16_t checksum(const void *data, size_t len)
{
	const uint8_t *byte = data;
	uint32_t sum = 0;
	size_t i;

	for (i = 0; i + 1 < len; i += 2)
		sum += byte[i] << 8 | byte[i + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

static uint8_t *put_option(uint8_t *at, enum option code, const void *value, uint8_t len)
{
	*at++ = code;
	*at++ = len;
	memcpy(at, value, len);
	return at + len;
}

static int ask(int fd, int ifindex, const uint8_t mac[ETH_ALEN], uint32_t xid, enum message type)
{
	static const uint8_t wanted[] = { OPT_MASK, OPT_ROUTER, OPT_DNS, OPT_MTU };
	struct sockaddr_ll to = {
		.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_ifindex = ifindex,
		.sll_halen = ETH_ALEN, .sll_addr = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
	};
	size_t len = FIXED + REQUEST_OPTIONS;
	struct packet p = { 0 };
	uint8_t *at = p.options, kind = type;

	p.ip.version = 4;
	p.ip.ihl = sizeof(p.ip) / 4;
	p.ip.tot_len = htons(len);
	p.ip.ttl = 64;
	p.ip.protocol = IPPROTO_UDP;
	p.ip.daddr = INADDR_BROADCAST;
	p.ip.check = checksum(&p.ip, sizeof(p.ip));
	p.udp.source = htons(CLIENT_PORT);
	p.udp.dest = htons(SERVER_PORT);
	p.udp.len = htons(len - sizeof(p.ip));	/* without a checksum, which IPv4 allows */
	p.op = 1;
	p.htype = 1;
	p.hlen = ETH_ALEN;
	p.xid = xid;
	p.flags = htons(BROADCAST);
	memcpy(p.chaddr, mac, ETH_ALEN);
	p.cookie = htonl(COOKIE);
	at = put_option(at, OPT_TYPE, &kind, 1);
	if (type == REQUEST) {
		at = put_option(at, OPT_ADDRESS, &lease.address, 4);
		if (lease.server)
			at = put_option(at, OPT_SERVER, &lease.server, 4);
	}
	at = put_option(at, OPT_WANTED, wanted, sizeof(wanted));
	*at = OPT_END;
	return sendto(fd, &p, len, 0, (struct sockaddr *)&to, sizeof(to)) < 0 ? -1 : 0;
}

static void take_option(struct lease *l, uint8_t code, const uint8_t *value, uint8_t len)
{
	if (code == OPT_TYPE && len == 1)
		l->type = value[0];
	else if (code == OPT_MASK && len == 4)
		memcpy(&l->mask, value, 4);
	else if (code == OPT_ROUTER && len >= 4)
		memcpy(&l->router, value, 4);
	else if (code == OPT_SERVER && len == 4)
		memcpy(&l->server, value, 4);
	else if (code == OPT_MTU && len == 2)
		l->mtu = value[0] << 8 | value[1];
	else if (code == OPT_DNS)
		for (; len >= 4 && l->ndns < MAX_SERVERS; len -= 4, value += 4)
			memcpy(&l->dns[l->ndns++], value, 4);
}

/* Is it an answer to `xid` of the wanted type? Then `lease` is what it says. */
static bool understand(const struct packet *p, size_t len, uint32_t xid, enum message type)
{
	struct lease l = { 0 };
	size_t at = 0, end;

	if (len < FIXED || p->ip.version != 4 || p->ip.ihl != sizeof(p->ip) / 4 ||
	    p->ip.protocol != IPPROTO_UDP || p->udp.dest != htons(CLIENT_PORT) ||
	    p->op != BOOTREPLY || p->xid != xid || p->cookie != htonl(COOKIE))
		return false;
	l.address = p->yiaddr;
	end = len - FIXED;
	while (at < end && p->options[at] != OPT_END) {
		if (p->options[at] == OPT_PAD) {
			at++;
			continue;
		}
		if (at + 2 > end || at + 2 + p->options[at + 1] > end)
			return false;
		take_option(&l, p->options[at], &p->options[at + 2], p->options[at + 1]);
		at += 2 + p->options[at + 1];
	}
	if (l.type != type || !l.address)
		return false;
	lease = l;
	return true;
}

static bool answered(int fd, uint32_t xid, enum message type)
{
	long long deadline = now_ms() + ANSWER, left;
	struct packet p;
	ssize_t len;

	while ((left = deadline - now_ms()) > 0) {
		if (!wait_fd(fd, POLLIN, left))
			continue;
		len = recv(fd, &p, sizeof(p), 0);
		if (len > 0 && understand(&p, len, xid, type))
			return true;
	}
	return false;
}

static const char *dhcp(int fd, const char *name)
{
	struct sockaddr_ll where = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP) };
	struct ifreq ifr = { 0 };
	uint8_t mac[ETH_ALEN];
	int raw, try, ifindex;
	bool done = false;
	uint32_t xid;

	if (interface_ioctl(fd, SIOCGIFHWADDR, name, &ifr))
		return "its address";
	memcpy(mac, ifr.ifr_hwaddr.sa_data, ETH_ALEN);
	if (interface_ioctl(fd, SIOCGIFINDEX, name, &ifr))
		return "its index";
	where.sll_ifindex = ifindex = ifr.ifr_ifindex;
	raw = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_IP));
	if (raw < 0)
		return "DHCP";
	if (!bind(raw, (struct sockaddr *)&where, sizeof(where))) {
		for (try = 0; try < TRIES && !done; try++) {
			xid = now_ms() * 2654435761u ^ getpid() << 16 ^ try;
			done = !ask(raw, ifindex, mac, xid, DISCOVER) && answered(raw, xid, OFFER) &&
			       !ask(raw, ifindex, mac, xid, REQUEST) && answered(raw, xid, ACK);
		}
		if (!done)
			errno = ETIMEDOUT;
	}
	close(raw);
	return done ? NULL : "DHCP";
}

/*
 * IPv6, in a kernel that has it, takes its address from what the router says.
 * Where nobody else is there to have the same one, it is not to look for him:
 * that would take seconds, and the network has to be ready when we are.
 */
static void trust(const char *name)
{
	char path[sizeof("/proc/sys/net/ipv6/conf//accept_dad") + IFNAMSIZ];
	int fd;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/accept_dad", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "0", 1) != 1)
		complain("%s: %s", path, strerror(errno));
	close(fd);
}

/* --- name servers of IPv6: RDNSS of the router's advertisements, which the kernel passes on (RFC 8106 §5.1) --- */

static int rdnss_socket(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 << (RTNLGRP_ND_USEROPT - 1) };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)))
		close_fd(&fd);
	return fd;
}

/* One message of the kernel's; an option is a type, a length in units of 8 bytes, 6 bytes that we skip, addresses. */
static void take_rdnss(const uint8_t *data, size_t len)
{
	const struct nlmsghdr *head = (const void *)data;
	const struct nduseroptmsg *option = (const void *)(data + NLMSG_HDRLEN);
	const uint8_t *at = data + NLMSG_HDRLEN + sizeof(*option);
	size_t size;

	if (len < NLMSG_HDRLEN + sizeof(*option) + 8 || head->nlmsg_type != RTM_NEWNDUSEROPT ||
	    option->nduseropt_family != AF_INET6 || at[0] != OPT6_RDNSS)
		return;
	size = at[1] * 8;
	if (size > len - (at - data))
		return;
	for (size = size < 8 ? 0 : size - 8, at += 8; size >= 16 && lease.ndns6 < MAX_SERVERS; size -= 16, at += 16)
		memcpy(&lease.dns6[lease.ndns6++], at, 16);
}

/* Wait for what the router says, where DHCP named no server. It may have none either, or there is no router. */
static void ask_router(int fd)
{
	long long deadline = now_ms() + ADVERTISED, left;
	uint8_t data[2048] __attribute__((aligned(8)));
	ssize_t len;

	while (!lease.ndns6 && (left = deadline - now_ms()) > 0) {
		if (!wait_fd(fd, POLLIN, left))
			continue;
		len = recv(fd, data, sizeof(data), 0);
		if (len > 0)
			take_rdnss(data, len);
	}
}

/* ADDRESS[/BITS][,ROUTER] */
static const char *given(const char *text)
{
	char copy[64], *bits, *router;
	int n = 24;

	snprintf(copy, sizeof(copy), "%s", text);
	router = strchr(copy, ',');
	if (router)
		*router++ = '\0';
	bits = strchr(copy, '/');
	if (bits) {
		*bits++ = '\0';
		n = atoi(bits);
	}
	errno = EINVAL;
	if (inet_pton(AF_INET, copy, &lease.address) != 1 || n < 1 || n > 32 ||
	    (router && inet_pton(AF_INET, router, &lease.router) != 1))
		return "its address";
	lease.mask = htonl(~0u << (32 - n));
	return NULL;
}

static void name_server(int fd, int family, const void *address)
{
	char text[INET6_ADDRSTRLEN], line[INET6_ADDRSTRLEN + 16];
	int len;

	inet_ntop(family, address, text, sizeof(text));
	len = snprintf(line, sizeof(line), "nameserver %s\n", text);
	if (write(fd, line, len) != len)
		complain("/etc/resolv.conf: %s", strerror(errno));
}

void net_resolver(void)
{
	unsigned int i;
	int fd;

	if (!lease.ndns && !lease.ndns6)
		return;
	mkdir("/etc", 0755);
	unlink("/etc/resolv.conf");	/* it may be a link to what a daemon writes that is not here */
	fd = open("/etc/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0) {
		complain("/etc/resolv.conf: %s", strerror(errno));
		return;
	}
	for (i = 0; i < lease.ndns; i++)
		name_server(fd, AF_INET, &lease.dns[i]);
	for (i = 0; i < lease.ndns6; i++)
		name_server(fd, AF_INET6, &lease.dns6[i]);
	close(fd);
}

/* Bring `name` up as unikvm.net= says. False: `why` says what is wrong with it. */
static bool set_up(int fd, const char *name, const char *how, char *why, size_t size)
{
	int news = -1;		/* of the router; from before the link is up */
	const char *what;

	if (!strcmp(how, "dhcp,alone")) {
		trust(name);
		news = rdnss_socket();
	}
	what = bring_up(fd, name) ? "it" : !strncmp(how, "dhcp", 4) ? dhcp(fd, name) : given(how);
	if (!what)
		what = configure(fd, name);
	if (!what && news >= 0 && !lease.ndns)
		ask_router(news);
	if (what)
		snprintf(why, size, "the network: %s of %s: %s", what, name, strerror(errno));
	else
		net_resolver();
	close_fd(&news);
	return !what;
}

void net_start(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char how[64], name[IFNAMSIZ], why[128];

	if (fd < 0)
		return;		/* a kernel without */
	bring_up(fd, "lo");
	if (cmdline_value("unikvm.net", how, sizeof(how))) {
		if (!first_interface(NULL, PATIENCE, name))
			complain("no network interface");
		else if (!set_up(fd, name, how, why, sizeof(why)))
			complain("%s", why);
	}
	close(fd);
}

/* Set up the interface that was plugged in at the PCI address `slot` (00:04.0). */
bool net_plugged(const char *slot, const char *how, char *why, size_t size)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char name[IFNAMSIZ], device[32];
	bool done = false;

	memset(&lease, 0, sizeof(lease));	/* of another interface, from before */
	snprintf(device, sizeof(device), "/0000:%s/", slot);
	if (fd < 0)
		snprintf(why, size, "the network: %s", strerror(errno));
	else if (!first_interface(device, PLUG_PATIENCE, name))
		snprintf(why, size, "no network interface came at %s (is there a driver?)", slot);
	else
		done = set_up(fd, name, how, why, size);
	close_fd(&fd);
	return done;
}

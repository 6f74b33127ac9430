/*
 * A fake libnvidia-ml.so.1: as much of NVML as nvidia-ml-py, nvidia-smi's textbook uses and our probe call.
 *
 * What it answers stands in the text file that SLURM_HEALTH_FAKE_NVML names, read anew at every call, so that
 * a fault takes effect at once. One statement a line, "end" on the last one; a file that is absent or
 * torn (no "end") changes nothing: the last whole one holds, and before the first whole one the driver is
 * "not loaded". hardware.py writes it:
 *
 *   driver VERSION                       init CODE (0: well; else what every call returns)
 *   gpu SLOT PCI UUID SERIAL MINOR NAME  (NAME is the rest of the line)
 *   set SLOT KEY NUMBER                  (keys: the table below)
 *   vbios SLOT VERSION
 *   link SLOT LINK WHAT NUMBER           (WHAT: what is counted on that NVLink, the table COUNTS)
 *   fail CALL SLOT CODE                  (SLOT -1: every GPU and calls without one; "field230": that field)
 *   hang CALL                            (CALL "*": every call); it blocks until the line is gone
 *   process SLOT PID BYTES
 *
 * With SLURM_HEALTH_FAKE_NVML_CALLS the name of each call is appended to that file.
 *
 * Structures and numbers are those of nvml.h (CUDA 12), as nvidia-ml-py's pynvml.py declares them.
 */

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct slot { int number; } *nvmlDevice_t;

enum {
	SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
	INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25,
	UNKNOWN = 999
};

enum { SLOTS = 32, RULES = 64, PROCESSES = 256, LINKS = 36, WORD = 96 };
enum { NONE = -1000 }; /* the number of what a board does not have: its calls are not supported */

/* Numbers of one GPU. The order is that of KEYS. */
enum key {
	GONE, LOST, ECC_VOLATILE, ECC_AGGREGATE, ECC_CORRECTED, REMAP_CORRECTED, REMAP_UNCORRECTED, REMAP_PENDING,
	REMAP_FAILED, RECOVERY, RETIRED_SBE, RETIRED_DBE, RETIRED_PENDING, TEMPERATURE, POWER, POWER_LIMIT, UTIL,
	THROTTLE, PSTATE, FAN, MEMORY_TEMPERATURE, SHUTDOWN, SLOWDOWN, MEMORY_LIMIT, MARGIN, SHUTDOWN_MARGIN,
	SLOWDOWN_MARGIN, SRAM_THRESHOLD, FABRIC, FABRIC_STATUS, FABRIC_MASK, FABRIC_SUMMARY, LINK_GEN,
	LINK_GEN_MAX, LINK_WIDTH, LINK_WIDTH_MAX, REPLAY, NVLINKS, NVLINKS_DOWN, PERSISTENCE, ECC,
	MIG, MEMORY, MEMORY_USED, SM_CLOCK, SW_THERMAL_TIME, HW_THERMAL_TIME, POWER_BRAKE_TIME, NVLINK5,
	VIRTUALIZATION, ADDRESSING, KEY_COUNT
};
static const struct { const char *name; long long usual; } KEYS[KEY_COUNT] = {
	[GONE] = {"gone", 0},
	[LOST] = {"lost", 0},
	[ECC_VOLATILE] = {"ecc-volatile", 0},
	[ECC_AGGREGATE] = {"ecc-aggregate", 0},
	[ECC_CORRECTED] = {"ecc-corrected", 0},
	[REMAP_CORRECTED] = {"remap-corrected", 0},
	[REMAP_UNCORRECTED] = {"remap-uncorrected", 0},
	[REMAP_PENDING] = {"remap-pending", 0},
	[REMAP_FAILED] = {"remap-failed", 0},
	[RECOVERY] = {"recovery", 0},
	[RETIRED_SBE] = {"retired-sbe", 0},
	[RETIRED_DBE] = {"retired-dbe", 0},
	[RETIRED_PENDING] = {"retired-pending", 0},
	[TEMPERATURE] = {"temperature", 34},
	[POWER] = {"power", 71500},
	[POWER_LIMIT] = {"power-limit", 700000},
	[UTIL] = {"utilization", 0},
	[THROTTLE] = {"throttle", 1}, /* nvmlClocksEventReasonGpuIdle */
	[PSTATE] = {"pstate", 0},
	[FAN] = {"fan", 40}, /* percent; -1: it cannot be read. An H100 SXM has none: ours has, so that it can fail */
	[MEMORY_TEMPERATURE] = {"memory-temperature", 39},
	[SHUTDOWN] = {"shutdown", 95},
	[SLOWDOWN] = {"slowdown", 92},
	[MEMORY_LIMIT] = {"memory-limit", 95},
	[MARGIN] = {"margin", NONE}, /* T.Limit, from Ada on: degrees to the highest operating temperature */
	[SHUTDOWN_MARGIN] = {"shutdown-margin", NONE},
	[SLOWDOWN_MARGIN] = {"slowdown-margin", NONE},
	[SRAM_THRESHOLD] = {"sram-threshold", 0},
	[FABRIC] = {"fabric", 3}, /* NVML_GPU_FABRIC_STATE_COMPLETED */
	[FABRIC_STATUS] = {"fabric-status", 0},
	[FABRIC_MASK] = {"fabric-mask", 0x1AA}, /* nothing is degraded, no configuration is wrong */
	[FABRIC_SUMMARY] = {"fabric-summary", 1},
	[LINK_GEN] = {"link-gen", 5},
	[LINK_GEN_MAX] = {"link-gen-max", 5},
	[LINK_WIDTH] = {"link-width", 16},
	[LINK_WIDTH_MAX] = {"link-width-max", 16},
	[REPLAY] = {"replay", 0},
	[NVLINKS] = {"nvlinks", 18},
	[NVLINKS_DOWN] = {"nvlinks-down", 0}, /* a bit for each link */
	[PERSISTENCE] = {"persistence", 1},
	[ECC] = {"ecc", 1},
	[MIG] = {"mig", 0},
	[MEMORY] = {"memory", 85520809984LL}, /* H100 SXM 80 GB: 81559 MiB */
	[MEMORY_USED] = {"memory-used", 0},
	[SM_CLOCK] = {"sm-clock", 345},
	[SW_THERMAL_TIME] = {"sw-thermal-time", NONE}, /* ns that it held the clocks down */
	[HW_THERMAL_TIME] = {"hw-thermal-time", NONE},
	[POWER_BRAKE_TIME] = {"power-brake-time", NONE},
	[NVLINK5] = {"nvlink5", 0}, /* as on Blackwell: NVLinks are counted otherwise */
	[VIRTUALIZATION] = {"virtualization", 0}, /* NVML_GPU_VIRTUALIZATION_MODE_NONE */
	[ADDRESSING] = {"addressing", NONE},
};

/* What is counted on an NVLink, and the NVML_FI_DEV_NVLINK_* of one link before NVLink 5 and from it on. */
enum { CRC, REPLAYS, RECOVERIES, EFFECTIVE_BER = 9, SYMBOL_BER = 11, COUNT_COUNT };
enum { NO_ERRORS = 0xFFF }; /* a bit error rate of 15e-255 */
static const struct { const char *name; unsigned before, since; } COUNTS[COUNT_COUNT] = {
	{"crc", 163, 0}, {"replay", 161, 0}, {"recovery", 162, 215}, {"overrun", 0, 207}, {"receive", 0, 208},
	{"integrity", 0, 211}, {"discards", 0, 212}, {"recovery-failed", 0, 214}, {"effective", 0, 219},
	{"effective-ber", 0, 220}, {"symbol", 0, 221}, {"symbol-ber", 0, 222},
};

struct gpu {
	int known, minor;
	char pci[32], uuid[WORD], serial[32], vbios[32], name[WORD];
	long long value[KEY_COUNT];
	unsigned counted[LINKS][COUNT_COUNT];
};
struct process { int slot; unsigned pid; unsigned long long bytes; };
struct state {
	char driver[80];
	int init, gpus, fails, hangs, processes;
	struct gpu gpu[SLOTS];
	struct { char call[WORD]; int slot, code; } fail[RULES];
	char hang[RULES][WORD];
	struct process process[PROCESSES];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct state last = {.init = DRIVER_NOT_LOADED};
static int users;
static struct slot slots[SLOTS];

static int parse(FILE *file, struct state *s)
{
	char line[512], word[WORD];
	int slot, whole = 0, length;
	long long number;
	unsigned link;

	memset(s, 0, sizeof(*s));
	while (fgets(line, sizeof(line), file)) {
		struct gpu g = {.known = 1, .vbios = "96.00.89.00.01"};

		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "driver %79s", s->driver) == 1 || sscanf(line, "init %d", &s->init) == 1)
			continue;
		if (sscanf(line, "gpu %d %31s %95s %31s %d %n", &slot, g.pci, g.uuid, g.serial, &g.minor, &length) == 5) {
			if (slot < 0 || slot >= SLOTS)
				continue;
			snprintf(g.name, sizeof(g.name), "%s", line + length);
			for (int key = 0; key < KEY_COUNT; key++)
				g.value[key] = KEYS[key].usual;
			for (link = 0; link < LINKS; link++)
				g.counted[link][EFFECTIVE_BER] = g.counted[link][SYMBOL_BER] = NO_ERRORS;
			s->gpu[slot] = g;
			if (slot >= s->gpus)
				s->gpus = slot + 1;
		} else if (sscanf(line, "set %d %95s %lld", &slot, word, &number) == 3) {
			for (int key = 0; slot >= 0 && slot < SLOTS && key < KEY_COUNT; key++)
				if (!strcmp(KEYS[key].name, word))
					s->gpu[slot].value[key] = number;
		} else if (sscanf(line, "vbios %d %31s", &slot, g.vbios) == 2) {
			if (slot >= 0 && slot < SLOTS)
				strcpy(s->gpu[slot].vbios, g.vbios);
		} else if (sscanf(line, "link %d %u %95s %lld", &slot, &link, word, &number) == 4) {
			for (int i = 0; slot >= 0 && slot < SLOTS && link < LINKS && i < COUNT_COUNT; i++)
				if (!strcmp(COUNTS[i].name, word))
					s->gpu[slot].counted[link][i] = (unsigned)number;
		} else if (s->fails < RULES && sscanf(line, "fail %95s %d %lld", word, &slot, &number) == 3) {
			strcpy(s->fail[s->fails].call, word);
			s->fail[s->fails].slot = slot;
			s->fail[s->fails++].code = (int)number;
		} else if (s->hangs < RULES && sscanf(line, "hang %95s", word) == 1) {
			strcpy(s->hang[s->hangs++], word);
		} else if (s->processes < PROCESSES) {
			struct process *p = &s->process[s->processes];

			if (sscanf(line, "process %d %u %llu", &p->slot, &p->pid, &p->bytes) == 3)
				s->processes++;
		}
		whole = !strcmp(line, "end");
	}
	return whole;
}

static void look(struct state *s)
{
	static struct stat seen; /* a new state is another file, renamed over the last one */
	const char *path = getenv("SLURM_HEALTH_FAKE_NVML");
	struct stat now;
	FILE *file = NULL;

	pthread_mutex_lock(&lock);
	if (path && !stat(path, &now) &&
	    (now.st_ino != seen.st_ino || now.st_size != seen.st_size ||
	     memcmp(&now.st_mtim, &seen.st_mtim, sizeof(now.st_mtim))))
		file = fopen(path, "re");
	if (file && parse(file, s)) {
		last = *s;
		seen = now;
	} else {
		*s = last;
	}
	pthread_mutex_unlock(&lock);
	if (file)
		fclose(file);
}

static void note(const char *call)
{
	const char *path = getenv("SLURM_HEALTH_FAKE_NVML_CALLS");
	int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : -1;

	if (file >= 0) {
		dprintf(file, "%s\n", call);
		close(file);
	}
}

static int hangs(const struct state *s, const char *call)
{
	for (int i = 0; i < s->hangs; i++)
		if (!strcmp(s->hang[i], "*") || !strcmp(s->hang[i], call))
			return 1;
	return 0;
}

static nvmlReturn_t fails(const struct state *s, const char *call, int slot)
{
	for (int i = 0; i < s->fails; i++)
		if (!strcmp(s->fail[i].call, call) && (s->fail[i].slot < 0 || s->fail[i].slot == slot))
			return s->fail[i].code;
	return SUCCESS;
}

/* What every call does first: hang if told to, and say why it cannot go on. slot -1: no GPU in particular. */
static nvmlReturn_t enter(const char *call, struct state *s, int slot, int starting)
{
	const struct timespec pause = {.tv_nsec = 20000000};

	note(call);
	for (look(s); hangs(s, call); look(s))
		nanosleep(&pause, NULL);
	if (fails(s, call, slot))
		return fails(s, call, slot);
	if (!starting && !users)
		return UNINITIALIZED;
	if (s->init)
		return s->init;
	if (slot >= 0 && (slot >= SLOTS || !s->gpu[slot].known))
		return INVALID_ARGUMENT;
	if (slot >= 0 && (s->gpu[slot].value[LOST] || s->gpu[slot].value[GONE]))
		return GPU_IS_LOST;
	return SUCCESS;
}

/* Opens a function: `s` is the state, `v` the GPU's numbers, `g` the GPU; arguments must not be NULL. */
#define DEVICE_CALL(device, pointer)                                                         \
	struct state s;                                                                      \
	int slot = (device) >= slots && (device) < slots + SLOTS ? (int)((device) - slots) : SLOTS; \
	nvmlReturn_t code = enter(__func__, &s, slot, 0);                                    \
	const struct gpu *g = &s.gpu[slot < SLOTS ? slot : 0];                               \
	const long long *v = g->value;                                                       \
	(void)v;                                                                             \
	if (code)                                                                            \
		return code;                                                                 \
	if (!(pointer))                                                                      \
	return INVALID_ARGUMENT

#define PLAIN_CALL(starting)                                  \
	struct state s;                                       \
	nvmlReturn_t code = enter(__func__, &s, -1, starting); \
	if (code)                                             \
	return code

static nvmlReturn_t copy(char *to, unsigned size, const char *text)
{
	if (strlen(text) >= size)
		return INSUFFICIENT_SIZE;
	strcpy(to, text);
	return SUCCESS;
}

/* ---- the library */

nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
	(void)flags;
	PLAIN_CALL(1);
	users++;
	return SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void)
{
	PLAIN_CALL(1);
	users++;
	return SUCCESS;
}

nvmlReturn_t nvmlShutdown(void)
{
	struct state s;

	enter(__func__, &s, -1, 0); /* for its hang only: shutting down works without a driver */
	if (!users)
		return UNINITIALIZED;
	users--;
	return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
	switch (code) {
	case SUCCESS: return "Success";
	case UNINITIALIZED: return "Uninitialized";
	case INVALID_ARGUMENT: return "Invalid Argument";
	case NOT_SUPPORTED: return "Not Supported";
	case NOT_FOUND: return "Not Found";
	case INSUFFICIENT_SIZE: return "Insufficient Size";
	case DRIVER_NOT_LOADED: return "Driver Not Loaded";
	case 10: return "Timeout";
	case 14: return "Corrupted infoROM";
	case GPU_IS_LOST: return "GPU is lost";
	case 16: return "GPU requires reset";
	case 18: return "Driver/library version mismatch";
	default: return "Unknown Error";
	}
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *to, unsigned size)
{
	PLAIN_CALL(0);
	return copy(to, size, s.driver);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *to, unsigned size)
{
	char text[WORD];

	PLAIN_CALL(0);
	snprintf(text, sizeof(text), "12.%s", s.driver);
	return copy(to, size, text);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	PLAIN_CALL(0);
	*version = 12080;
	return SUCCESS;
}

/* ---- finding a GPU. A lost one is counted (as real drivers do until they are reloaded), one gone is not. */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
	PLAIN_CALL(0);
	*count = 0;
	for (int i = 0; i < s.gpus; i++)
		*count += s.gpu[i].known && !s.gpu[i].value[GONE];
	return SUCCESS;
}

static nvmlReturn_t give(const char *call, int slot, nvmlDevice_t *device)
{
	struct state s;
	nvmlReturn_t code = enter(call, &s, slot, 0);

	if (!code)
		*device = &slots[slot];
	return code;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
	PLAIN_CALL(0);
	for (int i = 0; i < s.gpus; i++)
		if (s.gpu[i].known && !s.gpu[i].value[GONE] && !index--)
			return give(__func__, i, device);
	return INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	PLAIN_CALL(0);
	for (int i = 0; i < s.gpus; i++)
		if (s.gpu[i].known && !s.gpu[i].value[GONE] && !strcmp(s.gpu[i].uuid, uuid))
			return give(__func__, i, device);
	return NOT_FOUND;
}

static int same_address(const char *a, const char *b)
{
	unsigned x[4], y[4];

	return sscanf(a, "%x:%x:%x.%x", &x[0], &x[1], &x[2], &x[3]) == 4 &&
	       sscanf(b, "%x:%x:%x.%x", &y[0], &y[1], &y[2], &y[3]) == 4 && !memcmp(x, y, sizeof(x));
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci, nvmlDevice_t *device)
{
	PLAIN_CALL(0);
	for (int i = 0; i < s.gpus; i++)
		if (s.gpu[i].known && !s.gpu[i].value[GONE] && same_address(s.gpu[i].pci, pci))
			return give(__func__, i, device);
	return NOT_FOUND;
}

/* ---- who it is */

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *to, unsigned size)
{
	DEVICE_CALL(device, to);
	return copy(to, size, g->name);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *to, unsigned size)
{
	DEVICE_CALL(device, to);
	return copy(to, size, g->uuid);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *to, unsigned size)
{
	DEVICE_CALL(device, to);
	return copy(to, size, g->serial);
}

nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *to, unsigned size)
{
	DEVICE_CALL(device, to);
	return copy(to, size, g->vbios);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor)
{
	DEVICE_CALL(device, minor);
	*minor = (unsigned)g->minor;
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
	DEVICE_CALL(device, index);
	*index = 0;
	for (int i = 0; i < slot; i++)
		*index += s.gpu[i].known && !s.gpu[i].value[GONE];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBoardPartNumber(nvmlDevice_t device, char *to, unsigned size)
{
	DEVICE_CALL(device, to);
	return copy(to, size, "692-2G520-0200-000");
}

struct pci {
	char legacy[16];
	unsigned domain, bus, device, id, subsystem;
	char address[32];
};

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci *pci)
{
	DEVICE_CALL(device, pci);
	memset(pci, 0, sizeof(*pci));
	sscanf(g->pci, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
	snprintf(pci->address, sizeof(pci->address), "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
	snprintf(pci->legacy, sizeof(pci->legacy), "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
		 pci->device & 0xff);
	pci->id = 0x233010de; /* H100 SXM5 80 GB */
	pci->subsystem = 0x16c110de;
	return SUCCESS;
}

/* ---- how it is */

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
	DEVICE_CALL(device, current && pending);
	*current = *pending = v[ECC] != 0;
	return SUCCESS;
}

/* type: 0 corrected, 1 uncorrected; counter: 0 volatile, 1 aggregate */
static unsigned long long ecc(const long long *v, unsigned type, unsigned counter)
{
	return (unsigned long long)(type == 0 ? v[ECC_CORRECTED] : v[counter ? ECC_AGGREGATE : ECC_VOLATILE]);
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned type, unsigned counter, unsigned long long *n)
{
	DEVICE_CALL(device, n);
	if (type > 1 || counter > 1)
		return INVALID_ARGUMENT;
	*n = ecc(v, type, counter);
	return v[ECC] ? SUCCESS : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned type, unsigned counter, unsigned where,
					     unsigned long long *n)
{
	DEVICE_CALL(device, n);
	if (type > 1 || counter > 1)
		return INVALID_ARGUMENT;
	*n = where == 2 ? ecc(v, type, counter) : 0; /* NVML_MEMORY_LOCATION_DEVICE_MEMORY */
	return v[ECC] ? SUCCESS : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected,
				       unsigned *pending, unsigned *failed)
{
	DEVICE_CALL(device, corrected && uncorrected && pending && failed);
	*corrected = (unsigned)v[REMAP_CORRECTED];
	*uncorrected = (unsigned)v[REMAP_UNCORRECTED];
	*pending = v[REMAP_PENDING] != 0;
	*failed = v[REMAP_FAILED] != 0;
	return SUCCESS;
}

/* Pages are retired by boards older than the A100; ours has row remapping, yet a state may say otherwise. */
static nvmlReturn_t retired(const long long *v, unsigned cause, unsigned *count, unsigned long long *pages,
			    unsigned long long *times)
{
	unsigned have = (unsigned)v[cause == 0 ? RETIRED_SBE : RETIRED_DBE];

	if (!v[RETIRED_SBE] && !v[RETIRED_DBE] && !v[RETIRED_PENDING])
		return NOT_SUPPORTED;
	if (*count < have || (have && !pages)) {
		*count = have;
		return INSUFFICIENT_SIZE;
	}
	*count = have;
	for (unsigned i = 0; i < have; i++) {
		pages[i] = 0x1000ULL * (i + 1);
		if (times)
			times[i] = 1700000000ULL + i;
	}
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, unsigned cause, unsigned *count, unsigned long long *pages)
{
	DEVICE_CALL(device, count);
	return retired(v, cause, count, pages, NULL);
}

nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, unsigned cause, unsigned *count,
					  unsigned long long *pages, unsigned long long *times)
{
	DEVICE_CALL(device, count);
	return retired(v, cause, count, pages, times);
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, unsigned *pending)
{
	DEVICE_CALL(device, pending);
	*pending = v[RETIRED_PENDING] != 0;
	return v[RETIRED_SBE] || v[RETIRED_DBE] || v[RETIRED_PENDING] ? SUCCESS : NOT_SUPPORTED;
}

struct field {
	unsigned id, scope;
	long long timestamp, latency;
	unsigned type;
	nvmlReturn_t code;
	union { double d; unsigned ui; unsigned long long ull; int si; } value;
};

enum { DOUBLE, UNSIGNED, LONG, UNSIGNED_LONG_LONG, LONG_LONG, SIGNED }; /* NVML_VALUE_TYPE_* */

/* What is counted of one kind on all links. */
static unsigned on_all_links(const struct gpu *g, int kind)
{
	unsigned sum = 0;

	for (unsigned i = 0; i < LINKS; i++)
		sum += g->counted[i][kind];
	return sum;
}

/* One of one link: known to the driver, to the board, and of a link that it has. */
static nvmlReturn_t on_a_link(const struct gpu *g, struct field *f)
{
	const long long *v = g->value;

	for (int i = 0; i < COUNT_COUNT; i++)
		if (f->id == (v[NVLINK5] ? COUNTS[i].since : COUNTS[i].before)) {
			if (f->scope >= (unsigned)v[NVLINKS])
				return v[NVLINKS] ? INVALID_ARGUMENT : NOT_SUPPORTED;
			f->type = v[NVLINK5] ? UNSIGNED_LONG_LONG : UNSIGNED;
			f->value.ull = g->counted[f->scope][i];
			return SUCCESS;
		}
	return NOT_SUPPORTED;
}

/* How long clocks were held down. The fields have moved: R590 has others in their place. */
static nvmlReturn_t held_down(const long long *v, int driver, struct field *f)
{
	static const enum key TIMES[] = {SW_THERMAL_TIME, HW_THERMAL_TIME, POWER_BRAKE_TIME};
	unsigned first = driver >= 590 ? 269 : 251;

	f->type = UNSIGNED;
	if (driver < 575 || (f->id != first && f->id != first + 1 && f->id != first + 2)) {
		f->value.ull = 1; /* power smoothing */
		return v[NVLINK5] ? SUCCESS : NOT_SUPPORTED;
	}
	f->type = UNSIGNED_LONG_LONG;
	f->value.ull = (unsigned long long)v[TIMES[f->id - first]];
	return v[TIMES[f->id - first]] == NONE ? NOT_SUPPORTED : SUCCESS;
}

static nvmlReturn_t field(const struct gpu *g, int driver, struct field *f)
{
	const long long *v = g->value;
	const int board = f->id == 193 ? SHUTDOWN_MARGIN : SLOWDOWN_MARGIN;
	unsigned long long n;

	f->type = UNSIGNED;
	switch (f->id) { /* NVML_FI_DEV_* */
	case 1: case 2: n = v[ECC] != 0; break;
	case 3: case 4: case 5: case 6: case 11: case 12: case 22: case 23:
		f->type = UNSIGNED_LONG_LONG;
		if (!v[ECC])
			return NOT_SUPPORTED;
		n = ecc(v, f->id == 4 || f->id == 6 || f->id == 12 || f->id == 23, f->id == 6 || f->id == 23);
		break;
	case 29: case 30: case 31:
		if (v[RETIRED_PENDING] == NONE)
			return NOT_SUPPORTED;
		n = f->id == 29 ? v[RETIRED_SBE] : f->id == 30 ? v[RETIRED_DBE] : v[RETIRED_PENDING] != 0;
		break;
	case 82:
		if (v[MEMORY_TEMPERATURE] == NONE)
			return NOT_SUPPORTED;
		n = v[MEMORY_TEMPERATURE];
		break;
	case 38: case 45: case 52: case 59: /* the sums of all links, CRC of flits and of data */
		if (!v[NVLINKS] || v[NVLINK5])
			return NOT_SUPPORTED;
		n = f->id == 45 ? 0 : on_all_links(g, f->id == 38 ? CRC : f->id == 52 ? REPLAYS : RECOVERIES);
		break;
	case 91:
		if (!v[NVLINKS])
			return NOT_SUPPORTED;
		n = v[NVLINKS];
		break;
	case 94: n = v[REPLAY]; break;
	case 142: n = v[REMAP_CORRECTED]; break;
	case 143: n = v[REMAP_UNCORRECTED]; break;
	case 144: n = v[REMAP_PENDING] != 0; break;
	case 145: n = v[REMAP_FAILED] != 0; break;
	case 165:
		if (f->scope >= (unsigned)v[NVLINKS])
			return v[NVLINKS] ? INVALID_ARGUMENT : NOT_SUPPORTED;
		n = !(v[NVLINKS_DOWN] >> f->scope & 1);
		break;
	case 161: case 162: case 163:
	case 206: case 207: case 208: case 209: case 210: case 211: case 212: case 213: case 214: case 215:
	case 216: case 217: case 218: case 219: case 220: case 221: case 222:
		return on_a_link(g, f);
	case 251: case 252: case 253: case 269: case 270: case 271:
		return held_down(v, driver, f);
	case 193: case 194:
		f->type = SIGNED;
		if (v[board] == NONE)
			return NOT_SUPPORTED;
		f->value.si = (int)v[board];
		return SUCCESS;
	case 230: n = v[RECOVERY]; break; /* NVML_FI_DEV_GET_GPU_RECOVERY_ACTION */
	default: return NOT_SUPPORTED;
	}
	f->value.ull = n;
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, struct field *fields)
{
	struct timespec now;
	char name[WORD];

	DEVICE_CALL(device, fields);
	clock_gettime(CLOCK_REALTIME, &now);
	for (int i = 0; i < count; i++) {
		struct field *f = &fields[i];

		f->value.ull = 0;
		f->timestamp = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
		f->latency = 0;
		snprintf(name, sizeof(name), "field%u", f->id);
		f->code = fails(&s, name, slot);
		if (!f->code)
			f->code = field(g, atoi(s.driver), f);
	}
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *degrees)
{
	(void)sensor;
	DEVICE_CALL(device, degrees);
	*degrees = (unsigned)v[TEMPERATURE];
	return SUCCESS;
}

struct temperature { unsigned version, sensor; int degrees; };

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, struct temperature *temperature)
{
	DEVICE_CALL(device, temperature);
	temperature->degrees = (int)v[TEMPERATURE];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned threshold, unsigned *degrees)
{
	static const enum key LIMITS[] = {SHUTDOWN, SLOWDOWN, MEMORY_LIMIT}; /* NVML_TEMPERATURE_THRESHOLD_* */

	DEVICE_CALL(device, degrees);
	if (threshold >= sizeof(LIMITS) / sizeof(*LIMITS) || v[LIMITS[threshold]] == NONE)
		return NOT_SUPPORTED;
	*degrees = (unsigned)v[LIMITS[threshold]];
	return SUCCESS;
}

struct margin { unsigned version; int degrees; };

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, struct margin *margin)
{
	DEVICE_CALL(device, margin);
	if (margin->version != 0x1000008)
		return ARGUMENT_VERSION_MISMATCH;
	if (v[MARGIN] == NONE)
		return NOT_SUPPORTED;
	margin->degrees = (int)v[MARGIN];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned *percent)
{
	DEVICE_CALL(device, percent);
	if (v[FAN] < 0)
		return v[FAN] == NONE ? NOT_SUPPORTED : UNKNOWN;
	*percent = (unsigned)v[FAN];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, unsigned *state)
{
	DEVICE_CALL(device, state);
	*state = (unsigned)v[PSTATE];
	return SUCCESS;
}

struct sram {
	unsigned version;
	unsigned long long aggregate[3], volatile_[3], bucket[5];
	unsigned exceeded;
};

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, struct sram *sram)
{
	DEVICE_CALL(device, sram);
	if (sram->version != 0x1000068)
		return ARGUMENT_VERSION_MISMATCH;
	if (!v[ECC] || v[SRAM_THRESHOLD] == NONE)
		return NOT_SUPPORTED;
	sram->exceeded = v[SRAM_THRESHOLD] != 0;
	return SUCCESS;
}

struct fabric {
	unsigned char cluster[16];
	nvmlReturn_t status;
	unsigned clique, state;
};
struct fabric_v {
	unsigned version;
	struct fabric fabric;
	unsigned mask;
	unsigned char summary; /* of version 3 */
};

static nvmlReturn_t fabric(const long long *v, struct fabric *fabric)
{
	memset(fabric, 0, sizeof(*fabric));
	fabric->state = (unsigned)v[FABRIC];
	fabric->status = (nvmlReturn_t)v[FABRIC_STATUS];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, struct fabric *to)
{
	DEVICE_CALL(device, to);
	return fabric(v, to);
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, struct fabric_v *to)
{
	DEVICE_CALL(device, to);
	if (to->version != 0x2000024 && (to->version != 0x3000028 || v[FABRIC_SUMMARY] == NONE))
		return ARGUMENT_VERSION_MISMATCH;
	to->mask = (unsigned)v[FABRIC_MASK];
	if (to->version == 0x3000028)
		to->summary = (unsigned char)v[FABRIC_SUMMARY];
	return fabric(v, &to->fabric);
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts)
{
	DEVICE_CALL(device, milliwatts);
	*milliwatts = (unsigned)v[POWER];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts)
{
	DEVICE_CALL(device, milliwatts);
	*milliwatts = (unsigned)v[POWER_LIMIT];
	return SUCCESS;
}

struct utilization { unsigned gpu, memory; };

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *rates)
{
	DEVICE_CALL(device, rates);
	if (v[MIG] > 0)
		return NOT_SUPPORTED;
	rates->gpu = rates->memory = (unsigned)v[UTIL];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned type, unsigned *megahertz)
{
	DEVICE_CALL(device, megahertz);
	*megahertz = type == 2 ? 2619 : (unsigned)v[SM_CLOCK]; /* NVML_CLOCK_MEM */
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
	DEVICE_CALL(device, reasons);
	*reasons = (unsigned long long)v[THROTTLE];
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
{
	DEVICE_CALL(device, reasons);
	*reasons = (unsigned long long)v[THROTTLE];
	return SUCCESS;
}

struct violation { unsigned long long reference, time; };

/* That heat (policy 1) had the driver hold the clocks down; the others are not ours to tell. */
nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, unsigned policy, struct violation *violation)
{
	DEVICE_CALL(device, violation);
	if (policy != 1 || v[SW_THERMAL_TIME] == NONE)
		return NOT_SUPPORTED;
	violation->reference = 0;
	violation->time = (unsigned long long)v[SW_THERMAL_TIME];
	return SUCCESS;
}

#define NUMBER(function, key)                                          \
	nvmlReturn_t function(nvmlDevice_t device, unsigned *number)   \
	{                                                              \
		DEVICE_CALL(device, number);                           \
		*number = (unsigned)v[key];                            \
		return SUCCESS;                                        \
	}
NUMBER(nvmlDeviceGetPersistenceMode, PERSISTENCE)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, LINK_GEN)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, LINK_GEN_MAX)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, LINK_WIDTH)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, LINK_WIDTH_MAX)
NUMBER(nvmlDeviceGetPcieReplayCounter, REPLAY)

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
	DEVICE_CALL(device, current && pending);
	if (v[MIG] == NONE)
		return NOT_SUPPORTED;
	*current = *pending = v[MIG] != 0;
	return SUCCESS;
}

NUMBER(nvmlDeviceGetVirtualizationMode, VIRTUALIZATION)

struct addressing { unsigned version, mode; };

nvmlReturn_t nvmlDeviceGetAddressingMode(nvmlDevice_t device, struct addressing *addressing)
{
	DEVICE_CALL(device, addressing);
	if (v[ADDRESSING] == NONE)
		return NOT_SUPPORTED;
	addressing->mode = (unsigned)v[ADDRESSING];
	return SUCCESS;
}

struct memory { unsigned long long total, free, used; };

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct memory *memory)
{
	DEVICE_CALL(device, memory);
	memory->total = (unsigned long long)v[MEMORY];
	memory->used = (unsigned long long)v[MEMORY_USED];
	memory->free = memory->total - memory->used;
	return SUCCESS;
}

struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct memory_v2 *memory)
{
	DEVICE_CALL(device, memory);
	memory->total = (unsigned long long)v[MEMORY];
	memory->reserved = 0;
	memory->used = (unsigned long long)v[MEMORY_USED];
	memory->free = memory->total - memory->used;
	return SUCCESS;
}

struct running { unsigned pid; unsigned long long bytes; unsigned instance, compute; };

static nvmlReturn_t running(const struct state *s, int slot, unsigned *count, struct running *list)
{
	unsigned have = 0, room = *count;

	for (int i = 0; i < s->processes; i++) {
		if (s->process[i].slot != slot)
			continue;
		if (list && have < room)
			list[have] = (struct running){s->process[i].pid, s->process[i].bytes, 0xffffffff, 0xffffffff};
		have++;
	}
	*count = have;
	return have > room ? INSUFFICIENT_SIZE : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, struct running *list)
{
	DEVICE_CALL(device, count);
	return running(&s, slot, count, list);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count, struct running *list)
{
	DEVICE_CALL(device, count);
	return running(&s, slot, count, list);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count, struct running *list)
{
	(void)list;
	DEVICE_CALL(device, count);
	*count = 0;
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active)
{
	DEVICE_CALL(device, active);
	if (link >= (unsigned)v[NVLINKS])
		return INVALID_ARGUMENT;
	*active = !(v[NVLINKS_DOWN] >> link & 1);
	return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned link, unsigned counter,
					     unsigned long long *n)
{
	static const int KINDS[] = {REPLAYS, RECOVERIES, CRC}; /* NVML_NVLINK_ERROR_DL_REPLAY, RECOVERY, CRC_FLIT */

	DEVICE_CALL(device, n);
	if (link >= (unsigned)v[NVLINKS] || link >= LINKS)
		return INVALID_ARGUMENT;
	*n = counter < 3 ? g->counted[link][KINDS[counter]] : 0;
	return SUCCESS;
}

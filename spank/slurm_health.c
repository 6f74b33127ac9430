/* SPANK plugin (spank(8)): slurm-health's options of sbatch, and what a restarted job is told in its environment.
 *
 *     sbatch --auto-requeue=5|off --checkpoint-signal=USR1@120 ...
 *
 * In plugstack.conf, on submit hosts and nodes:
 *
 *     optional /usr/lib/slurm-health/spank_slurm_health.so [run=/run/slurm-health]
 *
 * What was asked goes with the job to its prolog, as SPANK_SLURM_HEALTH, and from there, on the job's card, to the
 * controller. Each step of a job that slurm-health brought back finds on that card why, and gets
 * SLURM_HEALTH_REASON, SLURM_HEALTH_BAD_NODES and SLURM_HEALTH_ATTEMPT. No RPC, one read of at most 4 KiB, and
 * nothing that happens here fails a job: without a card nothing is set.
 */

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(slurm_health, 1)

enum { REQUEUE, SIGNAL, CARD = 4096 };

static char requeue[16], signal_at[24]; /* "5", "off"; "USR1@120" */

/* Digits only, 1 to `most` of them. */
static bool number(const char *text, size_t most)
{
	size_t length = strspn(text, "0123456789");
	return length && length <= most && !text[length];
}

static int refuse(const char *option, const char *value, const char *hint)
{
	slurm_error("--%s=%s: %s", option, value ? value : "", hint);
	return ESPANK_BAD_ARG;
}

static int on_requeue(int val, const char *value, int remote)
{
	(void)val;
	if (remote)
		return ESPANK_SUCCESS;
	if (!value || (strcmp(value, "off") && !number(value, 6)))
		return refuse("auto-requeue", value, "write a number of times, such as --auto-requeue=5, or off");
	snprintf(requeue, sizeof requeue, "%s", value);
	return ESPANK_SUCCESS;
}

static int on_signal(int val, const char *value, int remote)
{
	static const char *const known[] = {"USR1", "USR2", "TERM", "INT", "HUP"};
	const char *at = value ? strchr(value, '@') : NULL;
	size_t length = at ? (size_t)(at - value) : value ? strlen(value) : 0;
	(void)val;
	if (remote)
		return ESPANK_SUCCESS;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (length == strlen(known[i]) && !strncmp(value, known[i], length) && (!at || number(at + 1, 6))) {
			snprintf(signal_at, sizeof signal_at, "%s", value);
			return ESPANK_SUCCESS;
		}
	return refuse("checkpoint-signal", value,
		      "write USR1, USR2, TERM, INT or HUP, and the seconds until the requeue: USR1@120");
}

static struct spank_option options[] = {
	{"auto-requeue", "[times|off]",
	 "slurm-health: requeue the job at most so often when hardware under it breaks, or never", 1, REQUEUE, on_requeue},
	{"checkpoint-signal", "[signal[@seconds]]",
	 "slurm-health: send the batch script this signal, the seconds before a requeue that can wait", 1, SIGNAL,
	 on_signal},
};

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	for (size_t i = 0; i < sizeof options / sizeof *options; i++)
		if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS)
			slurm_error("slurm-health: --%s is not there", options[i].name);
	return ESPANK_SUCCESS;
}

/* sbatch, salloc and srun, when all options are known. */
int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
	char asked[80];
	(void)argc;
	(void)argv;
	if (spank_remote(spank) || !(*requeue || *signal_at))
		return ESPANK_SUCCESS;
	snprintf(asked, sizeof asked, "%s%s%s%s%s", !strcmp(requeue, "off") || !*requeue ? "" : "requeue=", requeue,
		 *requeue && *signal_at ? " " : "", *signal_at ? "signal=" : "", signal_at);
	if (spank_job_control_setenv(spank, "SLURM_HEALTH", asked, 1) != ESPANK_SUCCESS)
		slurm_error("slurm-health: --auto-requeue and --checkpoint-signal do not reach this job");
	return ESPANK_SUCCESS;
}

/* The card's path: `run` (its %n stands for the node's name), the job, its restarts. */
static bool card_path(spank_t spank, int argc, char **argv, char *path, size_t size)
{
	const char *run = "/run/slurm-health", *name;
	char node[256], restarts[12] = "0";
	uint32_t job;
	int length;
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "run=", 4))
			run = argv[i] + 4;
	if (spank_get_item(spank, S_JOB_ID, &job) != ESPANK_SUCCESS ||
	    spank_getenv(spank, "SLURM_RESTART_COUNT", restarts, sizeof restarts) != ESPANK_SUCCESS ||
	    !number(restarts, 10))
		return false; /* a first run has nothing to be told */
	name = strstr(run, "%n");
	if (!name)
		length = snprintf(path, size, "%s/jobs/%u.%s", run, job, restarts);
	else if (spank_getenv(spank, "SLURMD_NODENAME", node, sizeof node) != ESPANK_SUCCESS || strchr(node, '/'))
		return false;
	else
		length = snprintf(path, size, "%.*s%s%s/jobs/%u.%s", (int)(name - run), run, node, name + 2, job, restarts);
	return length > 0 && (size_t)length < size;
}

/* What is in an ordinary file of root's, up to `size`; "" where there is none. */
static void read_card(const char *path, char *text, size_t size)
{
	struct stat is;
	ssize_t got = 0;
	int file = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (file >= 0 && !fstat(file, &is) && S_ISREG(is.st_mode) && !is.st_uid)
		got = read(file, text, size - 1);
	text[got > 0 ? got : 0] = '\0';
	if (file >= 0)
		close(file);
}

/* Each task, the batch script too, with its user's rights: only here is SLURMD_NODENAME known. */
int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
	static const char *const told[][2] = {
		{"\nattempt=", "SLURM_HEALTH_ATTEMPT"},
		{"\nbad_nodes=", "SLURM_HEALTH_BAD_NODES"},
		{"\nreason=", "SLURM_HEALTH_REASON"},
	};
	char path[4096], card[CARD], value[256];
	if (!card_path(spank, argc, argv, path, sizeof path))
		return ESPANK_SUCCESS;
	read_card(path, card, sizeof card);
	for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
		const char *at = strstr(card, told[i][0]);
		if (!at)
			continue;
		at += strlen(told[i][0]);
		snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\n"), at);
		spank_setenv(spank, told[i][1], value, 1);
	}
	return ESPANK_SUCCESS;
}

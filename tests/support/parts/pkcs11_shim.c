/* A PKCS#11 module that loads another one, passes every call on, and puts faults into
 * the calls that a test names.
 *
 * Beside this shared object lies a file of the same name and ".state". Every process
 * that loads the module maps it, and so does the test: what the test writes holds from
 * the next call on, and the counters are those of all processes together. Its layout is
 * `struct state`; `pkcs11_shim.py` has the same.
 *
 * All arguments of all functions of PKCS#11 2.40 are integers or pointers, so that one
 * type stands for each of them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef uintptr_t word;
typedef unsigned long rv;

enum {
	OK = 0,
	ARGUMENTS_BAD = 7,
	GENERAL_ERROR = 5,
	FLAGS_AT = 96, /* in CK_TOKEN_INFO, after the four texts */
	MAX_SESSIONS_AT = FLAGS_AT + sizeof(unsigned long)
};

/* What a fault does; the numbers are those of `Fault` in pkcs11_shim.py. */
enum action {
	RETURN_INSTEAD = 1, /* return `value`; the other module is not called */
	RETURN_AFTER = 2,   /* call, and return `value` whatever came of it */
	SLEEP = 3,          /* `value` milliseconds, then call */
	HANG = 4,           /* for ever */
	CRASH = 5,
	ABORT = 6,
	WRONG_BYTES = 7,    /* C_Sign: the last byte of the signature is another one */
	MAX_SESSIONS = 8,   /* C_GetTokenInfo: ulMaxSessionCount is `value` */
	FLAGS = 9,          /* C_GetTokenInfo: the flags of `value` are set, too */
	CLOSE_SESSIONS = 10, /* C_CloseAllSessions of the first argument's slot, then call */
	LOGOUT = 11         /* C_Logout of the first argument, then call */
};

#define FUNCTIONS 68
#define ALWAYS UINT64_MAX

struct function {
	_Atomic uint64_t calls;
	_Atomic uint64_t left;   /* how many more calls the fault is for; or ALWAYS */
	_Atomic uint64_t hits;   /* calls that it was for */
	_Atomic uint64_t action;
	_Atomic uint64_t value;
	uint64_t unused[3];
};

struct state {
	char module[1024]; /* the other module */
	char variable[64]; /* set to `setting` in the environment before it is loaded */
	char setting[1024];
	struct function functions[FUNCTIONS];
};

struct list {
	unsigned char version[2];
	void *functions[FUNCTIONS];
};

static struct state *state;
static const struct list *real;

#define NAMES(X) \
	X(C_Initialize, 1) X(C_Finalize, 1) X(C_GetInfo, 1) X(C_GetFunctionList, 1) \
	X(C_GetSlotList, 3) X(C_GetSlotInfo, 2) X(C_GetTokenInfo, 2) \
	X(C_GetMechanismList, 3) X(C_GetMechanismInfo, 3) X(C_InitToken, 4) \
	X(C_InitPIN, 3) X(C_SetPIN, 5) X(C_OpenSession, 5) X(C_CloseSession, 1) \
	X(C_CloseAllSessions, 1) X(C_GetSessionInfo, 2) X(C_GetOperationState, 3) \
	X(C_SetOperationState, 5) X(C_Login, 4) X(C_Logout, 1) X(C_CreateObject, 4) \
	X(C_CopyObject, 5) X(C_DestroyObject, 2) X(C_GetObjectSize, 3) \
	X(C_GetAttributeValue, 4) X(C_SetAttributeValue, 4) X(C_FindObjectsInit, 3) \
	X(C_FindObjects, 4) X(C_FindObjectsFinal, 1) X(C_EncryptInit, 3) X(C_Encrypt, 5) \
	X(C_EncryptUpdate, 5) X(C_EncryptFinal, 3) X(C_DecryptInit, 3) X(C_Decrypt, 5) \
	X(C_DecryptUpdate, 5) X(C_DecryptFinal, 3) X(C_DigestInit, 2) X(C_Digest, 5) \
	X(C_DigestUpdate, 3) X(C_DigestKey, 2) X(C_DigestFinal, 3) X(C_SignInit, 3) \
	X(C_Sign, 5) X(C_SignUpdate, 3) X(C_SignFinal, 3) X(C_SignRecoverInit, 3) \
	X(C_SignRecover, 5) X(C_VerifyInit, 3) X(C_Verify, 5) X(C_VerifyUpdate, 3) \
	X(C_VerifyFinal, 3) X(C_VerifyRecoverInit, 3) X(C_VerifyRecover, 5) \
	X(C_DigestEncryptUpdate, 5) X(C_DecryptDigestUpdate, 5) \
	X(C_SignEncryptUpdate, 5) X(C_DecryptVerifyUpdate, 5) X(C_GenerateKey, 5) \
	X(C_GenerateKeyPair, 8) X(C_WrapKey, 6) X(C_UnwrapKey, 8) X(C_DeriveKey, 6) \
	X(C_SeedRandom, 3) X(C_GenerateRandom, 3) X(C_GetFunctionStatus, 1) \
	X(C_CancelFunction, 1) X(C_WaitForSlotEvent, 3)

enum {
#define X(name, count) I_##name,
	NAMES(X)
#undef X
	COUNT
};
_Static_assert(COUNT == FUNCTIONS, "PKCS#11 2.40 has 68 functions");

static void rest(long nanoseconds)
{
	struct timespec pause = {nanoseconds / 1000000000, nanoseconds % 1000000000};
	nanosleep(&pause, NULL);
}

/* A fault of what C_Sign gives is not for the call that asks for a length only. */
static int is_for(const struct function *one, int index, const word *arguments)
{
	uint64_t action = atomic_load(&one->action);
	int is_of_answer = action == WRONG_BYTES || action == RETURN_AFTER;
	return index != I_C_Sign || arguments[3] != 0 || !is_of_answer;
}

/* Takes one of the calls that the fault is for. */
static int is_due(struct function *one)
{
	uint64_t left = atomic_load(&one->left);
	while (left != 0) {
		if (left == ALWAYS || atomic_compare_exchange_weak(&one->left, &left, left - 1)) {
			atomic_fetch_add(&one->hits, 1);
			return 1;
		}
	}
	return 0;
}

static void close_sessions(word session)
{
	unsigned long info[4]; /* CK_SESSION_INFO: the slot stands first */
	rv (*ask)(word, word) = (rv(*)(word, word))real->functions[I_C_GetSessionInfo];
	rv (*close)(word) = (rv(*)(word))real->functions[I_C_CloseAllSessions];
	if (ask(session, (word)info) == OK)
		close(info[0]);
}

/* What a fault does before the call. Returns whether the call is not made at all. */
static int before(uint64_t action, uint64_t value, word first)
{
	switch (action) {
	case RETURN_INSTEAD:
		return 1;
	case SLEEP:
		rest((long)value * 1000000);
		break;
	case HANG:
		for (;;)
			pause();
	case CRASH:
		*(volatile int *)NULL = 0;
		break;
	case ABORT:
		abort();
	case CLOSE_SESSIONS:
		close_sessions(first);
		break;
	case LOGOUT:
		((rv(*)(word))real->functions[I_C_Logout])(first);
		break;
	default:
		break;
	}
	return 0;
}

/* What a fault does after the call; `arguments` are those of the call. */
static rv after(uint64_t action, uint64_t value, rv result, const word *arguments)
{
	if (action == RETURN_AFTER)
		return value;
	if (result != OK)
		return result;
	char *answer = (char *)arguments[1];
	if (action == WRONG_BYTES) {
		unsigned long length = *(unsigned long *)arguments[4];
		((unsigned char *)arguments[3])[length - 1] ^= 1;
	} else if (action == MAX_SESSIONS) {
		*(unsigned long *)(answer + MAX_SESSIONS_AT) = value;
	} else if (action == FLAGS) {
		*(unsigned long *)(answer + FLAGS_AT) |= value;
	}
	return result;
}

static rv pass(int index, const word *arguments, rv (*call)(void *, const word *))
{
	struct function *one = &state->functions[index];
	atomic_fetch_add(&one->calls, 1);
	uint64_t action = 0, value = 0;
	if (is_for(one, index, arguments) && is_due(one)) {
		action = atomic_load(&one->action);
		value = atomic_load(&one->value);
	}
	if (before(action, value, arguments[0]))
		return value;
	return after(action, value, call(real->functions[index], arguments), arguments);
}

#define P1 word a
#define P2 P1, word b
#define P3 P2, word c
#define P4 P3, word d
#define P5 P4, word e
#define P6 P5, word f
#define P8 P6, word g, word h
#define A1 a
#define A2 A1, b
#define A3 A2, c
#define A4 A3, d
#define A5 A4, e
#define A6 A5, f
#define A8 A6, g, h
#define V1 v[0]
#define V2 V1, v[1]
#define V3 V2, v[2]
#define V4 V3, v[3]
#define V5 V4, v[4]
#define V6 V5, v[5]
#define V8 V6, v[6], v[7]

#define X(name, count) \
	static rv call_##name(void *function, const word *v) \
	{ \
		return ((rv(*)(P##count))function)(V##count); \
	} \
	static rv shim_##name(P##count) \
	{ \
		const word arguments[8] = {A##count}; \
		return pass(I_##name, arguments, call_##name); \
	}
NAMES(X)
#undef X

static struct list ours = {
	{2, 40},
	{
#define X(name, count) (void *)shim_##name,
	NAMES(X)
#undef X
	},
};

/* Maps the file beside this module. */
static struct state *map_state(void)
{
	Dl_info own;
	char path[PATH_MAX];
	if (!dladdr((void *)&map_state, &own))
		return NULL;
	if (snprintf(path, sizeof path, "%s.state", own.dli_fname) >= (int)sizeof path)
		return NULL;
	int file = open(path, O_RDWR | O_CLOEXEC);
	if (file < 0)
		return NULL;
	void *found = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	return found == MAP_FAILED ? NULL : found;
}

static const struct list *load(void)
{
	const struct list *found = NULL;
	if (state->variable[0])
		setenv(state->variable, state->setting, 1);
	void *other = dlopen(state->module, RTLD_NOW | RTLD_LOCAL);
	if (other == NULL)
		return NULL;
	rv (*get)(const struct list **) =
		(rv(*)(const struct list **))dlsym(other, "C_GetFunctionList");
	return get != NULL && get(&found) == OK ? found : NULL;
}

/* Once, before any function of the module can be called. */
__attribute__((constructor)) static void begin(void)
{
	state = map_state();
	if (state != NULL)
		real = load();
}

rv C_GetFunctionList(const struct list **answer)
{
	if (answer == NULL)
		return ARGUMENTS_BAD;
	if (real == NULL) {
		fprintf(stderr, "pkcs11_shim: no file of its state, or no module\n");
		return GENERAL_ERROR;
	}
	ours.functions[I_C_GetFunctionList] = (void *)C_GetFunctionList;
	atomic_fetch_add(&state->functions[I_C_GetFunctionList].calls, 1);
	*answer = &ours;
	return OK;
}

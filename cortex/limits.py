"""Every limit, named with its unit, and why it is that number."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Input
SPLIT_BYTES: Final = 64 * MIB  # a map of well under a second to a few seconds: cheap to repeat
SPLIT_BYTES_MIN: Final = 8 * MIB  # of the default for smaller inputs: a tenth of a second of work
SPLITS_WANTED: Final = 32  # enough for the processors of one machine to end at about the same time
SPLIT_SLOP: Final = 1.1  # a last split up to 10 % larger rather than a sliver (Hadoop's rule)
SMALL_FILES_PER_TASK_MAX: Final = 1000  # packing bound, so that one map's failure names few files
BLOCK_BYTES: Final = 4 * MIB  # text and CSV are decoded in blocks: pyarrow's parse needs 3-4 times this
RECORD_BYTES_MAX: Final = 64 * MIB  # one record must fit in memory beside its batch
BATCH_ROWS_MAX: Final = 65_536  # rows handed to map_batch at once
SPLITS_MAX: Final = 1_000_000  # the plan of a job must fit in one frame: 42 bytes each
INFER_BYTES: Final = 1 * MIB  # the fixed sample of each file that column types are inferred from
INFER_FILES_MAX: Final = 16  # files sampled: headers are checked in all of them all the same

FINGERPRINT_BLOCKS: Final = 16  # samples of a file, evenly spaced from its head to its tail
FINGERPRINT_BLOCK_BYTES: Final = 16 * KIB  # of each: a file up to 256 KB is hashed whole, in a tenth of a ms
DATA_PACK_BYTES: Final = 256 * KIB  # of small files below data roots in one map: neighbours by name may be on
# several nodes, and so much from another one costs less than one more map

# Files put on nodes
PUT_PARTS_AT_ONCE: Final = (
    4  # that a client offers: nodes write in turn, and 4 temporary files of SPLIT_BYTES
)
PUT_PARTS_MAX: Final = 100_000  # of one put: 6 TB in splits; the server keeps a kilobyte of each
PUT_COPIES_MAX: Final = 16  # of a part: each is read of the client by itself
PUT_BLOCK_BYTES_MIN: Final = 4 * KIB  # parts end where a block does, a 16th of a part: smaller ones are slow
PUT_AHEAD_BYTES: Final = 4 * MIB  # of a part, asked for by its node and not yet written: 40 ms at 100 MB/s
PUT_PART_TRIES_MAX: Final = 4  # of a part that arrives damaged: then it is the way, or the client's memory
PUT_STALL_S: Final = 60.0  # a disk that takes nothing of a part for so long is given no more: it may stall
PUT_OPEN_S_MAX: Final = 15.0  # nodes have this long to say whether they take parts: less than ANSWER_S_MAX

# The job's own text
JOB_FILE_BYTES_MAX: Final = 1 * MIB  # a job.yaml is written by hand: anything larger is the wrong file
EXPRESSION_CHARS_MAX: Final = 100_000  # room for a list of thousands of values after `in`
EXPRESSION_NESTING_MAX: Final = 80  # parentheses and calls: 5 Python frames each, and Python allows 1000
EXPRESSION_DEPTH_MAX: Final = 200  # of the tree, such as a chain of `or`: 2 frames each in compiling it

# Shuffle
RUN_BATCH_BYTES: Final = 128 * KIB  # one batch a run is in memory while merging: fan-in x this is its cost
PARTITIONS_MAX: Final = 4096  # reducers a user may ask for: every map keeps a count for each
REDUCER_INPUT_BYTES: Final = 256 * MIB  # reducers: auto gives one for each of these in the input
REDUCERS_FEW: Final = 4  # for inputs of 64 MB and more, so that a few processors reduce
REDUCERS_AUTO_MAX: Final = 256
MERGE_FAN_IN_MIN: Final = 8  # below it passes multiply: refuse the cap instead
FOLD_ROWS: Final = 32_768  # sorted rows gathered at once: their copies, or Python objects, exist together
FOLD_BYTES: Final = 4 * MIB  # or fewer rows, when they are long
ORDER_BYTES_PER_ROW: Final = 48  # what ordering rows needs beside them (`order_by_hash` says 40) and a hash
GROUP_TABLE_KEYS_MAX: Final = 50_000  # groups whose states are held in a table: beyond, caches miss
FOLD_KEYS_MAX: Final = 300_000  # keys folded in a dict before it goes to the collector

# Spill
RUN_WRITE_BYTES: Final = 256 * KIB  # small blocks are gathered to this before a write
OPEN_RUN_FILES_MAX: Final = 256  # descriptors a merge keeps: a process may commonly have 1,024
SPILL_CHECK_BYTES: Final = 16 * MIB  # the disk's free space is looked at once for each of these
SPILL_PORTION_FRACTION: Final = 1 / 16  # of what a node may still spill, for one writer: the others find some
SPILL_MEASURE_S: Final = (
    2.0  # what lies in a node's spill folders is counted this often, seldomer when it is much
)
SPILL_REST_S: Final = (
    2.0  # a node that had no room for an attempt gets no other so soon: jobs that end give room;
)
SPILL_REST_S_MAX: Final = 60.0  # twice as long after each further one
SPILL_RESERVE_BYTES: Final = 256 * MIB  # never taken: a disk at zero stops more than this job

# Segments between nodes
SEGMENT_REQUEST_BYTES_MAX: Final = 4 * KIB  # a request is 100 bytes: ids and numbers; with others 2 KB
SEGMENT_ANSWER_BYTES_MAX: Final = 64 * KIB  # a header is 50 bytes; a refusal may carry a traceback
SERVE_BATCH_BYTES: Final = 1 * MIB  # read at once in a thread, whose turn costs 0.1 ms of a busy interpreter
SERVE_CACHED_BYTES: Final = (
    384 * KIB
)  # read at once from the page cache: 0.1 ms; two blocks of RUN_BATCH_BYTES
SERVE_BATCH_BYTES_MIN: Final = 64 * KIB  # that every connection may have, however many there are
SERVE_BYTES_MAX: Final = 8 * MIB  # read and not yet sent, beyond that minimum: shared by all connections
SERVE_READERS: Final = 4  # threads: reads from a cold disk overlap, a few keep it busy
SERVE_CONNECTIONS_MAX: Final = 512  # two of each of 256 nodes
SERVE_CONNECTIONS_PER_PEER: Final = 8  # its own two, and those it lost without our noticing yet
SERVE_REQUESTS_MAX: Final = 256  # unanswered on one connection: three times what a fetcher of ours asks for
SERVE_STALL_S: Final = 60.0  # a receiver that takes nothing for so long is cut off: its own disk may stall
SERVE_IDLE_S: Final = 120.0  # without a request: far longer than a fetcher keeps an idle connection
FETCH_BYTES_MAX: Final = 8 * MIB  # received and not yet on disk, on all connections: then senders are paused
FETCH_BATCH_BYTES: Final = (
    512 * KIB
)  # of one segment, written at once: less costs turns of threads, more the caches
FETCH_RECEIVE_BYTES: Final = (
    256 * KIB
)  # taken from a socket at once: a fifth less processor time than Twisted's 64
FETCH_WRITERS: Final = 2  # threads: one may wait for the disk
KEPT_HEAP_BYTES: Final = (
    16 * MIB
)  # freed buffers that the C library keeps: what is held in flight, and comes again
FETCH_CONNECT_S_MAX: Final = 15.0  # a handshake takes milliseconds, a lost packet's repetition seconds
FETCH_STALL_S: Final = 20.0  # no byte for so long, though asked for: the peer is stuck, or its disk is
TRANSFER_TICK_S: Final = 0.25  # how often stalls, rests and idle connections are looked at
FETCH_CONNECTIONS_MAX: Final = 16  # at once, to all holders: enough to fill a link whoever is slow
FETCH_CONNECTIONS_PER_HOLDER: Final = 2  # one segment read from a cold disk does not hold up all others
FETCH_REQUESTS_AHEAD: Final = 16  # asked for on one connection: small segments need no round trip each
FETCH_TOGETHER_MAX: Final = 64  # asked for in one message, to be had combined: as many as a node combines
FETCH_LOOKED_AT_MAX: Final = 1024  # segments waiting, of which those that go together are chosen
FETCH_TRIES_MAX: Final = 5  # of a segment, and of a holder in a row: about half a minute of back-off
FETCH_BACKOFF_FIRST_S: Final = 0.25  # four times as long after each further failure
FETCH_BACKOFF_S_MAX: Final = 15.0  # a node that restarts is back within
FETCH_IDLE_S: Final = 30.0  # a connection with nothing to ask is kept: maps end one after another

# Combining at the node
COMBINE_MAPS_MIN: Final = 8  # outputs merged at once: of the bytes of equal keys, seven of eight are saved
COMBINE_NEIGHBOURS_MIN: Final = 4  # the same where only neighbours may be merged: a node has few in a row
COMBINE_MAPS_MAX: Final = FETCH_TOGETHER_MAX  # one bit each of 64; beyond, more saves little
COMBINE_SAVING_MIN: Final = 0.2  # of the bytes: less does not repay reading and writing them once more

# Calls (cortex compute)
CELL_CALLS_MAX: Final = 65_536  # calls in one cell: a tenth of a microsecond each is 5 ms of work
CELL_INLINE_BYTES_MAX: Final = 4 * MIB  # of a pickle in a frame: larger ones are attached
ATTACH_BYTES: Final = 1 * MIB  # a cell's data from so much on travels outside of frames
ATTACHED_ALIGN_BYTES: Final = 64  # where each buffer of an attachment begins: a cache line, Arrow's alignment
CELL_S: Final = 0.05  # work in a cell: what it costs on its way, 0.35 ms of processor time, is 0.7 % of it
CELL_AHEAD_S: Final = 0.1  # a worker is sent a cell ahead if that is shorter: longer ones would wait
CALL_RETRIES_MAX: Final = 100  # of a call that raises: what fails a hundred times fails
CALL_S_MAX: Final = 30 * 86_400.0  # that a call's timeout may be: a month
ARGUMENTS_COUNTED_BYTES: Final = 8 * MIB  # a file of arguments is read once more to count them: 0.1 s
ARGUMENT_FILES_COUNTED_MAX: Final = 10_000  # paths that are counted before a run: 20 ms
FAILURES_SHOWN: Final = 10  # of `cortex compute`, at the end: the others are in a file
ARGUMENT_CHARS_SHOWN: Final = 200  # of a failing call's arguments, in an error
CELL_GROWTH_MAX: Final = 8  # times as many calls as in cells that are back: what is not yet known stays small
CELL_RATE_MAX: Final = (
    1000  # cells a second that client and server handle: with many slots each has more work
)
CELL_RATES_KEPT: Final = 4  # last cells whose seconds a call count: one slow call is forgotten after as many
CELLS_IN_FLIGHT: Final = 3  # short cells for each slot: one in hand, one ahead, one on its way
CELLS_SPARE: Final = 2  # long cells beyond one for each slot: a slot that is free has the next at once
CELL_PULL_S: Final = 0.05  # a source slower than a cell's calls: those that it gave are sent after this
RESULTS_HELD_BYTES: Final = (
    128 * MIB
)  # of one map, come before their turn or unread: then nothing more is sent
RESULT_COST_BYTES: Final = (
    1 * KIB
)  # of a cell's results, beside their pickle: what Python objects for it need
RESULTS_FILED_BYTES: Final = 4096 * MIB  # the same for results in files: room on a disk
ARGUMENTS_BYTES: Final = 1024 * MIB  # of calls under way, in memory or in files, unless of two cells
FUNCTION_VARIANTS_MAX: Final = 16  # of one code with other closures, kept everywhere to the job's end
SENDER_REST_S: Final = 5.0  # a thread that sends submitted calls ends when none has waited for so long
SEND_HELD_S: Final = 5.0  # Ctrl-C waits for a message to be sent whole: longer, and its link is given up
SEND_BYTES: Final = 4 * MIB  # of cells in one message
FAILURES_KEPT_MAX: Final = 1000  # that errors="collect" raises together: of all further ones only the number
CALL_STUCK_S: Final = 0.1  # a call that takes longer has what waits behind it in its worker given back
CALL_DEATHS_MAX: Final = 4  # executors that may die of one call: as many as attempts of a task may fail
CELL_BUFFER_BYTES_MIN: Final = 4 * KIB  # a smaller buffer is copied into its pickle: that costs less
ARGUMENT_READS_AHEAD: Final = 8  # pieces of a large argument under way: nobody waits for a round trip each
FETCHED_ARGUMENT_DIVISOR: Final = 4  # one that is more than this part of a slot's memory is fetched to a file
FUNCTIONS_SENT_MAX: Final = 1000  # of one client that its workers know: a program may make one for each call
FUNCTIONS_LOADED_MAX: Final = 1000  # that a worker has unpickled: a lambda for each call must not fill memory
CALL_ERROR_BYTES_MAX: Final = 256 * KIB  # of what a call raised, pickled: else only its words travel
CALL_ERRORS_BYTES: Final = 4 * MIB  # what failed calls of a cell say in one message: it is in one frame
CALL_LOOK_S: Final = 0.05  # how often a worker's watch thread looks at the call in hand: 20 µs each
CALL_KEPT_S: Final = 2.0  # behind its limit of time a call that keeps the interpreter ends with its process
CALL_TIME_TICK_S: Final = 0.01  # how exactly a call's own time limit is seen, at most
WORKER_REST_S: Final = 1.0  # without a cell for so long, a worker's watch thread sleeps until one comes
WORKER_MEMORY_S: Final = 0.5  # how often a worker looks whether its memory comes back: 30 µs each
NESTED_DEPTH_MAX: Final = 64  # calls in one executor, each begun while the last one waits for it
HELP_LOOKS_MAX: Final = 64  # workers that are looked at for something to do towards what a call waits for
NESTED_FRAMES: Final = 100  # of Python's 1,000 frames a call may use, what one more of these adds
NESTED_WAIT_S: Final = 0.05  # who waits for other calls looks so often whether it still has to
NESTED_AGAIN_S: Final = 1.0  # a call that waits says so again, as the server may have forgotten
NESTED_INLINE_BYTES_MAX: Final = 32 * MIB  # of what goes from call to call on a cluster, in a frame
PRINTED_S: Final = 0.25  # what a call prints is told so often while it runs
PRINTED_BYTES_MAX: Final = 64 * KIB  # of one call: the rest is only counted, as a loop that prints is endless

# Control plane
FRAME_BYTES_MAX: Final = 64 * MIB  # control frame between authenticated peers: a plan of 1 M splits has 40
HELLO_BYTES_MAX: Final = 4 * KIB  # first frame of a connection, before it is known who sends it
NODE_HELLO_BYTES_MAX: Final = 1 * MIB  # of a peer with a node's certificate: it says what it holds
HELLO_S_MAX: Final = 10.0
FUNCTION_BYTES_MAX: Final = (
    FRAME_BYTES_MAX - MIB
)  # of a function that is called, with what it uses: one frame
UNSENT_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX  # kept for a peer that does not read: a frame and its successor
ANSWER_S_MAX: Final = 30.0  # for the answer to one question; a server under load takes a second or two
PART_CHUNK_BYTES: Final = 256 * KIB  # of the output, in one frame on its way to the client
PART_CREDIT_BYTES: Final = 2 * MIB  # of a part in flight: covers a round trip of 20 ms at 100 MB/s
PART_READERS: Final = 2  # threads of a node that read parts: one may wait for the disk
PARTS_FETCHED_AT_ONCE: Final = 4  # by one client: so that one slow node does not hold up the others
PART_STREAMS_MAX: Final = 16  # that a client may have open at the server
BUNDLE_BYTES_MAX: Final = 1024 * MIB  # that travel with one job: larger ones belong on a path of the nodes
BUNDLE_FILES_MAX: Final = 10_000  # in it: their names and hashes are 1 MB of a message
BUNDLE_NAME_BYTES_MAX: Final = 1024  # of a file in it, with the folders it is in
FILE_NAME_BYTES_MAX: Final = 255  # of one part of a path: what file systems take
PACKAGES_MAX: Final = 1000  # that one job's code may need: each is looked for on every node
BLOB_CHUNK_BYTES: Final = 256 * KIB  # of a job's file, in one frame
BLOB_CREDIT_BYTES: Final = 1 * MIB  # of files in flight to the server or to a node: 50 MB/s at 20 ms
BLOB_REQUESTS_MAX: Final = 64  # files that a node may have asked for at once: no round trip for each
BLOB_STREAMS_MAX: Final = 32  # of all nodes at once: 32 MB in flight; others wait their turn
INPUT_READ_BYTES: Final = 512 * KIB  # of a client's file, in one frame: beats wait 50 ms behind it at 10 MB/s
INPUT_FIND_BYTES: Final = 16 * MIB  # looked through by a client for one read: 10 ms, or 100 on a cold disk
INPUT_AHEAD_BYTES: Final = 4 * MIB  # asked for by an executor before it needs them: 40 ms at 100 MB/s
INPUT_FILES_AHEAD: Final = 32  # beginnings asked for before their turn: small files need no round trip each
INPUT_STREAMS_MAX: Final = 64  # places of one file read by turns, such as columns: each keeps its last bytes
INPUT_KEPT_BYTES: Final = 64 * KIB  # of what was read, in each: a block begins with a record cut before;
# and of a file's beginning that is asked for before its turn
INPUT_NODE_BYTES: Final = 16 * MIB  # asked for by all executors of a node and not yet here: what it may hold
INPUT_CLIENT_BYTES: Final = 16 * MIB  # asked of one client and not yet at the server: 160 ms at 100 MB/s
INPUT_READS_MAX: Final = 1024  # at once, of a node or a client: small ones count as well
INPUT_OPEN_FILES_MAX: Final = 64  # descriptors that a client keeps: a job may read 100,000 files
INPUT_HOLDER_BYTES: Final = 8 * MIB  # asked of one holder and not yet here: 80 ms at 100 MB/s
INPUT_HOLDER_READS_MAX: Final = 32  # at once of one holder: half of what it takes (SERVE_REQUESTS_MAX)
INPUT_STALL_S: Final = 10.0  # a holder that owes bytes and sends none: another one, or the client, is asked
INPUT_REST_S: Final = 5.0  # a holder that could not be reached, or refused, is asked again after this
INPUT_HOLDERS_S_MAX: Final = 30.0  # that a read waits for one of its holders: then its attempt has failed
HELD_FINGERPRINTS_MAX: Final = 100_000  # that a node remembers: a large file is hashed once, not for each job
DATA_ANSWER_S_MAX: Final = 120.0  # for a node to say what input it has: a hung disk must not hold the job.
# Not where whole files are compared, which takes what it takes
DATA_READERS: Final = 2  # threads of a node that look for input below its data roots
LOCALITY_DELAY_S: Final = 1.0  # a node with room waits so long for a map of its own data before it takes one
# of another's: a map or two. Shorter, and nodes that end a little earlier fetch what others have at hand
HOLDER_RETURN_S: Final = 60.0  # maps whose only holder is lost wait for it: a machine that restarts is back
INPUT_WAIT_S: Final = 1.0  # how often an executor that waits for the client says that it does
SHUT_DOWN_S: Final = 1.0  # from telling the nodes to end to the server's own end: the word is on its way
LOG_FILE_BYTES: Final = 16 * MIB  # of a server or a node, then the next is begun: some hundred thousand lines
LOG_FILES_KEPT: Final = 4  # before it: with it 80 MB
JOB_LOG_BYTES: Final = 64 * KIB  # of what a job's code wrote at one node: the end
LOGS_BYTES_MAX: Final = 4 * MIB  # of all jobs that have ended, in a node's memory
LOGS_S_MAX: Final = 5.0  # nodes have this long to send what a job's code wrote
JOBS_REMEMBERED: Final = 1000  # ended jobs that `cortex jobs` still shows: a line each
REDIAL_FIRST_S: Final = 0.5  # before a node dials its server again; twice as long after each failure
LINK_SILENCE_S_MAX: Final = (
    30.0  # nothing sent arrives: TCP alone would try for a quarter of an hour, and the
)
# node not know that its server has given its work to others
REDIAL_S_MAX: Final = 5.0  # a server that comes back has all its nodes within twice this; a thousand TLS
# handshakes in as long take a fifth of a core
SERVER_SILENCE_S_MAX: Final = 600.0  # a node that hears nothing of its server for this long drops its work
RECEIVED_S_MAX: Final = 10.0  # to say that the result is committed: it is, whether the server hears it or not
SERVER_RETURN_S: Final = 300.0  # a client dials a server that is gone for this long, then gives its job up
UNTRUSTED_S: Final = 30.0  # without its server a node serves others no longer: one may have been revoked
CLUSTER_START_S_MAX: Final = 60.0  # of a LocalCluster: until its server and nodes answer
NODE_EXIT_S_MAX: Final = 10.0  # to remove what it spilled; then it ends all the same
CLOSE_S_MAX: Final = 2.0  # to take the last message of a connection being closed; then it is aborted
UNIX_PATH_BYTES_MAX: Final = 103  # macOS: sun_path holds 104 with its closing zero (Linux 108)
NODE_AWAY_S: Final = 5.0  # from the end of a node's link to its loss: one that lives is back in one or two
DRAIN_S: Final = 3600.0  # a node that is drained has so long to finish what it runs, unless asked otherwise
NODE_RETURN_S: Final = 4 * REDIAL_S_MAX  # after the server's start, for the nodes of its life before
RESULTS_S: Final = 7 * 86_400.0  # a detached job's result is kept unless asked otherwise: over a holiday
RESULTS_S_MAX: Final = 90 * 86_400.0  # nodes are restarted more often than that, and results go with them
FAILURES_KEPT_S: Final = (
    86_400.0  # why a detached job failed, for whoever asks: `cortex jobs` knows it longer
)
RESULTS_KEPT_MAX: Final = (
    1000  # detached jobs at once: the journal keeps the records of each until it is forgotten
)
MAPS_KEPT_S: Final = 3600.0  # map outputs after the end of a detached job: a node lost early costs little
COMMIT_TASKS_MAX: Final = 200_000  # whose parts a node commits: their names fit in one frame
FILES_CHECKED_MAX: Final = 1000  # of a detached job, when it is planned: a millisecond each where it is far
DETACH_PLAN_S: Final = 20.0  # a client that detaches waits for the plan: what is wrong with it shows there
CLIENT_RETURN_S: Final = 30.0  # from the end of a client's link to the end of its jobs: it dials every few s
JOURNAL_S: Final = 0.1  # finished attempts are written down together, this late at most
JOURNAL_RETRY_S: Final = 2.0  # after the journal could not be written: a full disk is given room by people
JOURNAL_WAITING_MAX: Final = 100_000  # records kept while it cannot be: then its jobs go on without one
EXAMINE_DIAL_S_MAX: Final = 4.0  # a port that is filtered does not answer at all
EXAMINE_S_MAX: Final = 8.0  # for nodes to answer `cortex doctor`: their disks and their dials
EXAMINED_PORTS_MAX: Final = 3  # of other nodes, that each tries: every port is tried by as many
METRICS_CONNECTIONS_MAX: Final = 64  # of those who watch one process: each scraper keeps one open
METRICS_IDLE_S: Final = 75.0  # a connection that asks nothing: Prometheus scrapes once a minute at most
AUDIT_FILE_BYTES: Final = 8 * MIB  # then another is begun: 30,000 actions
AUDIT_FILES: Final = 8  # kept: a month at 8,000 actions a day
AUDIT_WAITING_MAX: Final = 10_000  # actions that wait for the disk, a few MB; then they go to the log alone
AUDIT_TEXT_CHARS_MAX: Final = 500  # of one text in an action: a job's name may be as long as its client likes
AUDIT_STRANGERS_MAX: Final = 60  # refusals of peers without certificate that are written in a minute
AUDIT_TAIL_MAX: Final = 10_000  # actions that are shown at once: 3 MB of a message
JOURNAL_DROPPED_AT_ONCE: Final = 20_000  # records of an ended job: 0.1 s, and others wait for the journal
JOURNAL_FREE_BYTES: Final = 16 * MIB  # of its file, kept for the next jobs; and given back at once: 0.1 s
JOURNAL_WAL_BYTES: Final = 16 * MIB  # what its write-ahead log is cut to when it was larger
ATTEMPTS_PER_LIFE: Final = 256  # of a server, at one task: the next life numbers its attempts from there on
LIVES_MAX: Final = 255  # of a server, under one job: attempts are numbered in 16 bits, those recalled as well
TASK_ATTEMPTS_MAX: Final = 4  # Hadoop's and Spark's number
SAME_ERROR_ATTEMPTS_MAX: Final = 2  # the same exception at the same line twice: it is the code, stop
LOST_REDOS_MAX: Final = 8  # times one map may be redone because its output was lost
LEASE_S: Final = 30.0  # a node silent for this long has lost its leases
HEARTBEAT_S: Final = 2.0
SCAN_SPLITS_PER_TASK: Final = 4  # 256 MiB: under a second, and still in the page cache for its maps
SCAN_AHEAD_PER_SLOT: Final = 2  # splits scanned before their maps: hides a scan, and they stay cached
SERVER_STALL_S: Final = 5.0  # a tick this late means the server itself stood still: no node is blamed for it
TASK_SILENCE_S_MAX: Final = 600.0  # no progress for this long: stack dump, kill, retry
LEASES_AHEAD_PER_SLOT: Final = 1  # queued at a node beyond its slots, so that no slot waits a round trip
SLOT_TURN_S: Final = 0.5  # a job keeps a slot at least so long: another one's executor has to start
SLOT_KEPT_S: Final = 0.1  # a slot that a job left waits so long for the server's word who has it next
RECALLS_AT_ONCE: Final = 16  # leases asked back for a job that waits for few slots: any may be the next
JOBS_TOLD_MAX: Final = 100  # of their progress on one tick, in turns: 4 ms
RECALL_JOBS_MAX: Final = 32  # waiting jobs that leases are asked back for at once
RECALL_NODES_MAX: Final = 64  # nodes looked at for that by one decision: 0.2 ms
NODES_DECLINED_MAX: Final = 64  # without a free slot, that one decision looks at in vain
NODES_IN_VAIN_MAX: Final = 128  # of any kind: 8 ms while they wait for maps near them; the next event goes on
PRIORITY_MIN: Final = -2
PRIORITY_MAX: Final = 2
PRIORITY_SHARE: Final = 4  # a job has so many times the slots of its user's job of the next lower priority
JOBS_PER_USER: Final = 100  # under way at once, unless the server was started with another number
USER_WEIGHT_MAX: Final = 1000.0  # and its inverse the least: beyond, one that waits would do so for hours
QUEUED_TASKS: Final = 2_000_000  # of all jobs, not begun, at which no job is taken: 100 MB in the server
GRANTS_PER_DECISION_MAX: Final = 250  # 3 ms; the rest at the next event, a tick at the latest
PREFETCH_PORTIONS: Final = 16  # of map outputs, told to nodes while maps run: a node hears no more often
MAP_BLOCKS_MAX: Final = 4096  # of neighbouring maps: a table of them and the partitions is 16 MB at most
MAP_ROWS_KEPT_MAX: Final = 1_000_000  # row counts, maps times partitions: 8 MB; beyond, hashes of a map's
PROGRESS_S: Final = 0.25
PROGRESS_BEATS_PER_S_MAX: Final = 200  # of all nodes: from 50 on each tells its progress less often, as the
# sum of many is as fresh; from 400 on with its heartbeats alone. 1,000 nodes at PROGRESS_S took 8 % of a core
PULSE_S: Final = 2.0  # how often an executor looks whether user code went on: far below the silence allowed

# Processes and memory of one machine (measured anonymous bytes, Python 3.11, pyarrow 26)
CLIENT_BYTES: Final = 40 * MIB  # command line with pyarrow loaded; a user's own process is charged no more
EMBEDDED_BYTES: Final = 40 * MIB  # server and node with Twisted: 27 at rest, the rest for plans and frames
TEMPLATE_BYTES: Final = 36 * MIB  # pyarrow, NumPy and cortex's tasks: shared by every executor
EXECUTOR_UNSHARED_BYTES: Final = 20 * MIB  # of those, what an executor writes to and so has of its own
EXECUTOR_WORKING_BYTES_MIN: Final = 48 * MIB  # a decoded block, its parse, and a spill buffer that is of use
MEMORY_RESERVE_FRACTION: Final = 0.05  # of the cap: allocators' slack and what lies between two samples
DATA_SLACK_BYTES: Final = 32 * MIB  # RLIMIT_DATA counts address space, of which allocators waste some
MEMORY_SAMPLE_S: Final = 0.25  # each process is measured this often, 30 µs; all together if one has grown
MEMORY_WHOLE_SAMPLES: Final = 8  # after so many all together in any case: up to 1 ms a process
EXECUTOR_START_S_MAX: Final = 60.0  # from fork to hello; a cold disk under load takes seconds
EXECUTOR_START_DEATHS_MAX: Final = 3  # in a row, before a hello: one may be chance, three are the machine
EXECUTOR_REFILL_S: Final = 0.2  # from the end of a job to executors for the next: often none comes
EXECUTOR_EXIT_S_MAX: Final = 1.0  # from Stop, or from the end of its link, to its death; then SIGKILL
REMOVE_S_MAX: Final = 5.0  # a folder is removed again and again: executors being killed may still write to it
STACK_DUMP_S: Final = 0.5  # between asking a silent task for its stacks and killing it
EMBEDDED_START_S_MAX: Final = 60.0  # until server and node answer
EMBEDDED_EXIT_S_MAX: Final = 2.0  # to remove temporary files after its client is gone; then SIGKILL
CALLS_END_S: Final = (
    2.0  # that a client which is closed waits for the end of calls that nobody wants any more
)
CANCEL_S_MAX: Final = 1.0  # a client waits this long for the end of the job it cancelled
PARENT_CHECK_S: Final = 0.5  # a child looks at its parent this often: others may keep its pipe open

# Who may come in (seconds of certificates and tokens are wall time)
DAY_S: Final = 86_400.0
AUTHORITY_S: Final = 3650 * DAY_S  # a cluster's authority cannot be renewed: longer than clusters live
SERVER_CERTIFICATE_S: Final = 365 * DAY_S  # its key is the authority's neighbour: shorter would win nothing
NODE_CERTIFICATE_S: Final = 30 * DAY_S  # renewed by the node itself while it is connected
CLIENT_CERTIFICATE_S: Final = 90 * DAY_S  # people come back after weeks: a client's, and an admin's
CERTIFICATE_BACKDATE_S: Final = 3600.0  # clocks of two machines may differ by this much
RENEW_AFTER_FRACTION: Final = 2 / 3  # of a certificate's life: a third is left to reach the server in
RENEW_RETRY_S: Final = 60.0  # after a renewal that failed, or was not possible yet
AUTHORITY_WARNED_S: Final = (
    365 * DAY_S
)  # before an authority's end the server's log says so: time for a new one
TOKEN_S: Final = 1 * DAY_S  # a join token's life unless asked otherwise: a working day and its night
TOKEN_S_MAX: Final = 365 * DAY_S
TOKEN_USES: Final = 50  # joins a token allows unless asked otherwise
TOKEN_USES_MAX: Final = 10_000
TOKEN_SECRET_BYTES: Final = 16  # 128 bits: beyond guessing
PRIVATE_FILE_BYTES_MAX: Final = 64 * KIB  # an identity has 3 KB: anything larger is another file
STRANGERS_PER_ADDRESS_MAX: Final = 32  # connections not yet known by a certificate; an IPv6 /64 counts as one
STRANGERS_MAX: Final = 512  # of all addresses: each may hold 100 KB of handshake for HELLO_S_MAX
DIAL_S_MAX: Final = 10.0  # to connect and to finish the handshake
JOIN_S_MAX: Final = 30.0  # the whole join: two connections, a signature, and a slow disk under the server

# Errors
STDERR_TAIL_BYTES: Final = 4 * KIB
STDERR_FILE_BYTES_MAX: Final = 16 * MIB  # then it is emptied: a print for each record must not fill the disk
LINE_TEXT_CHARS_MAX: Final = 400  # of the offending record, in an error
DISPLAY_ROWS: Final = 40  # rows of a result shown as a table

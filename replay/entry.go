package replay

import "time"

// What zero fields of [Limits] and [Budget] stand for.
const (
	DefaultEntries = 1024
	DefaultBytes   = 1 << 20
	DefaultAge     = 5 * time.Minute

	DefaultBatchEntries = 256
	DefaultBatchBytes   = 64 << 10
)

// An Entry is one message of a log.
//
// Data is shared by the log and all its readers: nobody may change it. It stays
// valid for as long as somebody holds it, also after the log has dropped it.
type Entry struct {
	Pos  Position  // its identity
	Prev uint32    // the Tag of the entry before it; 0 for the first of an epoch
	At   time.Time // when it was appended, by the clock of whoever numbered it
	Key  string    // what it is about, for conflation; may be empty
	Data []byte
}

// size is what an entry counts for bounds in bytes.
func (e *Entry) size() int64 { return int64(len(e.Data) + len(e.Key)) }

// Limits bound what a log stores. The oldest entries beyond any of the three are
// dropped, and a reader that still wanted them gets a [GapError].
type Limits struct {
	// Entries is the greatest number of entries. Zero means DefaultEntries,
	// negative no limit.
	Entries int

	// Bytes is the greatest sum of the lengths of Data and Key. The newest entry
	// is kept even if it is longer than that alone. The 120 bytes or so that each
	// entry takes besides do not count; Entries bounds those. Zero means
	// DefaultBytes, negative no limit.
	Bytes int64

	// Age is how long an entry is kept, counted from when this log got it. It is
	// dropped when it is that old, or up to Age/64 or a millisecond later,
	// whether or not anything else happens. Zero means DefaultAge, negative no
	// limit.
	Age time.Duration
}

// A Budget bounds one batch. If there is anything to read then a batch has at
// least one entry, even one that is over the budget by itself.
type Budget struct {
	// Entries is the greatest number of entries. Zero means DefaultBatchEntries,
	// negative no limit.
	Entries int

	// Bytes is the greatest sum of the lengths of Data and Key. Zero means
	// DefaultBatchBytes, negative no limit.
	Bytes int64
}

// limits returns the budget with the defaults filled in; no limit is more entries
// than there ever are, and a negative number of bytes.
func (b Budget) limits() (entries uint64, bytes int64) {
	entries, bytes = DefaultBatchEntries, DefaultBatchBytes
	if b.Entries != 0 {
		entries = uint64(b.Entries)
	}
	if b.Bytes != 0 {
		bytes = b.Bytes
	}
	return entries, bytes
}

// A Batch is what one read returns. The zero value is ready to be read into. It
// may be used again for the next read, which overwrites the slice Entries but not
// what its entries refer to. It keeps the room for the largest batch that it has
// held, about 100 bytes an entry.
type Batch struct {
	// Entries follow each other without a gap, but for those that conflation
	// left out.
	Entries []Entry

	// Conflated is how many entries were left out because a newer one with the
	// same key follows. It is 0 unless the cursor's [Lag] asks for it.
	Conflated int

	// To is where the next read goes on, and what a reader has to remember that
	// wants to resume after this batch.
	To Position

	// Head is the position of the newest entry at the time of the read. The
	// reader has caught up if it is equal to To.
	Head Position
}

// reset makes the batch one without entries. It returns how many there were, for
// release.
func (b *Batch) reset(to, head Position) (held int) {
	held = len(b.Entries)
	b.Entries, b.Conflated, b.To, b.Head = b.Entries[:0], 0, to, head
	return held
}

// release lets go of the data of those of so many entries that are no longer in
// the batch.
func (b *Batch) release(held int) {
	if n := len(b.Entries); n < held {
		clear(b.Entries[n:held])
	}
}

// A Verdict is what [Log.Insert] makes of an entry.
type Verdict int

const (
	// Appended: the entry follows the head and is now the head itself.
	Appended Verdict = iota + 1

	// Duplicate: it is an entry that the log has already got.
	Duplicate

	// Missing: entries between the head and this one have to be inserted first.
	Missing

	// Forked: the log has another entry of the same number, or the entry does not
	// follow the log's head though its number does. The source has gone back to
	// an older state and handed out numbers again.
	Forked

	// NewEpoch: the entry belongs to another epoch than the log.
	NewEpoch

	// TooOld: its number is below all that are stored, so that it cannot be told
	// whether it is a duplicate or forked. Ask the source for its head.
	TooOld
)

// String returns the name of the constant.
func (v Verdict) String() string {
	switch v {
	case Appended:
		return "Appended"
	case Duplicate:
		return "Duplicate"
	case Missing:
		return "Missing"
	case Forked:
		return "Forked"
	case NewEpoch:
		return "NewEpoch"
	case TooOld:
		return "TooOld"
	}
	return "Verdict(?)"
}

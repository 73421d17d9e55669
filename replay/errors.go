package replay

import (
	"errors"
	"fmt"
)

// ErrExhausted is returned by [Log.Append] when an epoch has used up its 2⁶⁴-1
// numbers. [Log.Reset] with the zero Position begins a new epoch.
var ErrExhausted = errors.New("replay: the epoch has no more sequence numbers")

// A Reason says why a reader cannot go on where it stands. It is a string so that
// it can be logged and sent as it is.
type Reason string

const (
	// ReasonTrimmed: entries that the reader has not read are no longer stored.
	// Missed is their number.
	ReasonTrimmed Reason = "trimmed"

	// ReasonEpoch: the position is of another epoch. The log was lost, or begun
	// anew, since. How much the reader missed is not known.
	ReasonEpoch Reason = "epoch"

	// ReasonForked: the entry that the position names is not the one that has its
	// number here. The log has gone back to an older state since, and handed out
	// the number again. Neither is known how much the reader missed, nor how many
	// of the last entries that it did read were undone.
	ReasonForked Reason = "forked"

	// ReasonAhead: the position's number is above the head's. The log has gone
	// back to an older state, or the position was made up.
	ReasonAhead Reason = "ahead"

	// ReasonNone: the position is the zero Position, which does not say where to
	// begin.
	ReasonNone Reason = "no position"

	// ReasonLagging: the reader is further behind than its [Lag] allows. Nothing
	// is lost yet; Missed is how many entries it would have to leave out.
	ReasonLagging Reason = "lagging"
)

// A GapError says that a reader cannot go on after Want without a break, and why.
// This is the one way in which entries are missed; there is no silent one.
//
// What to do: tell whoever reads that there is a gap, and then go on from a
// position of your choice, by [Cursor.Seek] or in the next call of [Log.After]:
// from Oldest to get all that is still stored, from Head to get only what is
// new, or from the position at which a snapshot was taken that you send instead.
//
// A reader that is only lagging can be disconnected as well. It may come back
// with Want and read on without a gap while the entries are stored.
type GapError struct {
	Reason Reason
	Want   Position // where the reader stands
	Oldest Position // the first place to go on from: reading after it gives all that is to be had
	Head   Position // the last one: reading after it gives only what is new
	Missed uint64   // entries between Want and Oldest, where Reason says that this is known
}

// Error describes the gap in words.
func (e *GapError) Error() string {
	switch e.Reason {
	case ReasonTrimmed:
		return fmt.Sprintf("replay: the %d entries after number %d are no longer stored", e.Missed, e.Want.Seq)
	case ReasonEpoch:
		return fmt.Sprintf("replay: the log has begun a new epoch since number %d was read", e.Want.Seq)
	case ReasonForked:
		return fmt.Sprintf("replay: number %d is now another entry than the one that was read", e.Want.Seq)
	case ReasonAhead:
		return fmt.Sprintf("replay: number %d was read, but the log ends at %d", e.Want.Seq, e.Head.Seq)
	case ReasonNone:
		return "replay: no position to read from"
	case ReasonLagging:
		return fmt.Sprintf("replay: the reader is %d entries behind, more than its limit", e.Head.Seq-e.Want.Seq)
	}
	return fmt.Sprintf("replay: cannot go on after number %d: %s", e.Want.Seq, e.Reason)
}

package backplane

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/replay"
)

// Bounds on what identifies things, in bytes. All three are valid UTF-8.
const (
	MaxTopic = 255 // a topic's name, at least 1
	MaxID    = 128 // a message's ID
	MaxKey   = 255 // a message's Key
)

// A Backplane gives the messages of each topic one order, keeps the newest of
// them, and tells all nodes of a service when there are new ones. Users do not
// call it: they use a [Hub]. This is the contract for those who write one; package
// backplanetest checks it.
//
// # Order
//
// Append gives the messages of a topic the numbers 1, 2, 3, … of an epoch, a
// random Tag each, and the Tag of the one before as Prev: at one place, so that
// there is one order. An epoch is random, chosen in the same step that begins it,
// and never used again. Whenever numbering has to begin anew, because what says
// how far it got is lost, a new epoch begins, and nothing that is left of the old
// one is returned any more. All subscribers of the topic then get a Reset, also those
// who had seen everything, because nobody can know that they had.
//
// There is no order across topics.
//
// # Live is a hint, Read is the truth
//
// What a [Sink] is told may be lost, repeated, late and out of order, as long as
// nothing is invented. What Read returns must be right: the Hub relies on it for
// the promise. Once Read has returned number n of an epoch, no other call may
// return an entry with a number up to n that was not there before. A backplane that
// goes back to an older state (a failover that loses acknowledged writes, a restart
// from an old snapshot) breaks this, and is found out by the Tags.
//
// # Calls
//
// All methods may be called at the same time by any number of goroutines. Those
// that take a context return when it is done, with its [context.Cause] in the
// error. Data is passed on without copying: nobody changes it, and both sides may
// keep it. Topics and messages have been checked with [CheckTopic] and
// [Message.Check].
//
// # Errors
//
// An error that wraps [ErrUnavailable] says that the backplane cannot be reached or
// cannot do its work now, whatever the reason: try again later. One that a call
// returns because its context is done need not. [ErrClosed] says that Close was called.
// Any other error of Append is final, and of other calls it is for the log. So a message
// that the backplane will never take (it is too large, or may not be written) gets
// NotStored and an error that does not wrap ErrUnavailable: an [Outbox] then gives it up,
// and does not hold up those behind it. One bad message must not fail others.
//
// # More abilities
//
// A Backplane may also be a [HeadReader] or an [EphemeralPublisher].
type Backplane interface {
	// Append stores a message and tells those who watch the topic.
	//
	// Two appends to a topic with the same ID, while the first is remembered (for
	// how long is for the implementation to document, and should be minutes),
	// store one message: the receipt of the other is Duplicate, with the position
	// of the stored one. An ID is not remembered beyond the topic's epoch. Without
	// an ID each append stores.
	//
	// The outcome in the receipt counts also if there is an error: NotStored only
	// if the message is certainly not stored and will not be by this call, and
	// else Unknown.
	Append(ctx context.Context, topic string, m Message) (Receipt, error)

	// Read returns the entries of topic that follow after, in order, without a gap,
	// as many as there are within the budget, and the head at that same instant.
	// That no such entry is stored is not an error. It returns a
	// [*replay.GapError] if reading cannot go on there, by the rules of
	// [replay.Log.After]: also if after names an entry that is not the one stored
	// under its number.
	//
	// With the zero Position it returns the newest entries instead, as many as the
	// budget allows.
	//
	// A topic that does not exist has an epoch nevertheless: Read begins it. So
	// somebody who has read nothing can tell later that nothing was missed.
	Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (Page, error)

	// Watch returns a Watcher that tells s. It does not block: connections are
	// made by the first Add.
	Watch(s Sink) Watcher

	// Close ends all calls and Watchers, with ErrClosed, and waits for its
	// goroutines.
	Close() error
}

// A Page is what [Backplane.Read] returns.
type Page struct {
	Entries []replay.Entry
	Head    replay.Position // of the newest entry, stored or not; never zero
}

// A Watcher is one node's subscription to the topics it cares about.
type Watcher interface {
	// Add begins to watch topics, and returns when that has been confirmed: of
	// what is appended from then on the sink is told, as well as it goes. Adding a
	// topic again does no harm. After an error it is not known which are watched.
	Add(ctx context.Context, topics ...string) error

	// Remove ends it. It does not wait: the sink may be told something more.
	Remove(topics ...string)

	// Close ends it for all topics. When it has returned no call of the sink is
	// running, nor will one begin.
	Close() error
}

// A Sink is what a [Watcher] tells: the Hub. Its methods do not block, do not call
// back, and may be called by any number of goroutines.
type Sink interface {
	// Entry says that an entry was appended.
	Entry(topic string, e replay.Entry)

	// Doorbell says that something was appended, but not what: because it is
	// large, or the backplane only rings.
	Doorbell(topic string)

	// Ephemeral hands over a message of [EphemeralPublisher].
	Ephemeral(topic string, data []byte)

	// Interrupted says that the sink may not have been told of everything in these
	// topics; or in any, if none is named. It must be called after each
	// interruption of whatever carries the hints, when they flow again, so that a
	// Read that begins now finds all of which the sink was not told.
	Interrupted(err error, topics ...string)
}

// A HeadReader is a [Backplane] that can tell the heads of many topics in one call.
// The Hub compares them with its own every few seconds, to find what it was not
// told of. It reads each topic for that if it has to.
type HeadReader interface {
	// Heads returns the head of each topic, in the order given, as Read would, or
	// the zero Position for one that cannot be reached or of which nothing is
	// known; and an error only if none can be reached. A topic whose head is
	// asked for or that is read must not be forgotten, even if nothing is appended
	// to it, for a minute at least.
	Heads(ctx context.Context, topics []string) ([]replay.Position, error)
}

// An EphemeralPublisher is a [Backplane] that can pass on messages without storing
// or numbering them.
type EphemeralPublisher interface {
	// PublishEphemeral tells whoever watches the topic now, or does not.
	PublishEphemeral(ctx context.Context, topic string, data []byte) error
}

// A Message is what is published.
type Message struct {
	// ID makes it harmless to publish the message again, when it is not known
	// what became of it. Within a topic it names this message and no other. A Hub
	// chooses a random one if it is empty. At most MaxID bytes.
	ID string

	// Key says what the message is about, for readers who are content with the
	// newest message of each key, see [replay.Lag]. It may be empty.
	Key string

	// Data is the message. It is not copied: do not change it afterwards.
	Data []byte
}

// Check returns an [*InputError] if the ID or the Key are not allowed.
func (m Message) Check() error {
	switch {
	case len(m.ID) > MaxID:
		return &InputError{"ID", fmt.Sprintf("has %d bytes, more than %d", len(m.ID), MaxID)}
	case !utf8.ValidString(m.ID):
		return &InputError{"ID", "is not valid UTF-8"}
	case len(m.Key) > MaxKey:
		return &InputError{"Key", fmt.Sprintf("has %d bytes, more than %d", len(m.Key), MaxKey)}
	case !utf8.ValidString(m.Key):
		return &InputError{"Key", "is not valid UTF-8"}
	}
	return nil
}

// CheckTopic returns an [*InputError] if a topic cannot have this name: valid UTF-8
// of 1 to MaxTopic bytes. All such names are different topics.
func CheckTopic(name string) error {
	switch {
	case name == "":
		return &InputError{"topic", "is empty"}
	case len(name) > MaxTopic:
		return &InputError{"topic", fmt.Sprintf("has %d bytes, more than %d", len(name), MaxTopic)}
	case !utf8.ValidString(name):
		return &InputError{"topic", "is not valid UTF-8"}
	}
	return nil
}

// A Receipt says what became of a message.
type Receipt struct {
	Outcome Outcome
	ID      string          // of the message; the Hub sets it, also when it has chosen it
	Pos     replay.Position // where it is stored, if Committed or Duplicate
}

// An Outcome is what became of a message. With NotStored and Unknown there is an
// error too.
type Outcome int

const (
	// Unknown: the message may be stored, now or a little later, or it may not.
	// Publishing it again with the same ID finds out, and stores it once.
	Unknown Outcome = iota

	// NotStored: it is certain that the message is not stored.
	NotStored

	// Committed: the message has got its position.
	Committed

	// Duplicate: a message with that ID was stored before, and this one is not.
	Duplicate

	// Queued: the backplane is away, and the message waits in the Hub's outbox. It
	// is a promise for [Outbox.Age] only, a minute by default, and only while the
	// process runs: after that the message is dropped, which [Outbox.Done] is told.
	Queued
)

// String returns the name in words.
func (o Outcome) String() string {
	switch o {
	case Unknown:
		return "unknown"
	case NotStored:
		return "not stored"
	case Committed:
		return "committed"
	case Duplicate:
		return "duplicate"
	case Queued:
		return "queued"
	}
	return "Outcome(?)"
}

var (
	// ErrUnavailable is in the error of a call that fails because the backplane is
	// away. Try again later; a message with the same ID.
	ErrUnavailable = errors.New("backplane: unavailable")

	// ErrClosed is returned by everything that has been closed.
	ErrClosed = errors.New("backplane: closed")

	// ErrOutboxFull is in the error of a Publish for which the backplane is away
	// and the outbox has no room. Slow down, or tell the user.
	ErrOutboxFull = errors.New("backplane: outbox full")

	// ErrExpired is in the error with which [Outbox.Done] is told of a message that
	// has waited for too long.
	ErrExpired = errors.New("backplane: message expired in the outbox")
)

// An InputError names an argument that is not allowed, and says why.
type InputError struct {
	Field  string // "topic", "ID", "Key", "Data", …
	Reason string // goes on after the field: "is empty"
}

func (e *InputError) Error() string { return "backplane: " + e.Field + " " + e.Reason }

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// Errors for Authorize to return, as they are or wrapped. With any other error the
// question counts as not answered: the client is told that the server is unavailable
// and to try again; a living subscription goes on and is asked for again later.
var (
	// ErrUnauthenticated: it is not known who that is, or no longer. The client
	// gets a new token and comes back.
	ErrUnauthenticated = errors.New("gateway: unauthenticated")

	// ErrForbidden: this is not allowed; or there is no such thing: return it for
	// both, and nobody can find out by trying which topics exist.
	ErrForbidden = errors.New("gateway: forbidden")
)

// An Action is what somebody wants to do.
type Action string

const (
	// Connect is asked once for each connection, after the client's hello.
	Connect Action = "connect"
	// Renew is asked when a client brings a new token on a living connection. It has
	// no Request.
	Renew Action = "renew"
	// Subscribe is asked for each subscription, and again for living ones, see
	// Options.Recheck.
	Subscribe Action = "subscribe"
	// Publish is asked for each message, ephemeral ones included.
	Publish Action = "publish"
)

// An Access is the question whether something is allowed.
type Access struct {
	Action Action

	// Request is that of the handshake, with its cookies and headers, and values
	// that middleware has put into its context. It is set for Connect only, and
	// must not be kept.
	Request *http.Request

	// Token is what the client has sent with its hello, or else that of the
	// request's header "Authorization: Bearer". For Connect and Renew.
	Token string

	// User and Value are those of the Grant for Connect.
	User  string
	Value any

	// Topic is what is to be read or written. For Subscribe and Publish. It is a
	// valid name, and chosen by the client.
	Topic string

	// Resume says that a Subscribe goes on from a position, or is asked again.
	Resume bool

	// Message is what is to be published, as the client has sent it: its data may be
	// anything, and must not be changed. What is not as it has to be is ErrForbidden;
	// after another error the client would send it again and again. The ID is empty if
	// the message is ephemeral. For Publish.
	Message backplane.Message
}

// A Grant is the answer that something is allowed.
type Grant struct {
	// User says who that is: for the limit of connections of one user, for
	// Disconnect, and for the ids of messages, which are the user's own. Empty for
	// somebody who need not be known; all those share one space of ids. It is for
	// Connect; for Renew it is empty or the same, as a connection cannot change hands.
	User string

	// Value is handed back with each further Access of the connection. It is
	// looked at for Connect only.
	Value any

	// Expires is when a connection ends unless a new token is brought before:
	// that of the token. Zero means never. For Connect and Renew.
	Expires time.Time

	// Floor is up to where the subscriber may see nothing: the topic's head when
	// the user was let in, say. See backplane.SubscribeOptions. For Subscribe.
	Floor replay.Position
}

// refusal is what a client is told of an error of Authorize.
func refusal(err error) (code, message string) {
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return wire.Unauthenticated, "the credentials are missing, wrong or expired"
	case errors.Is(err, ErrForbidden):
		return wire.Forbidden, "not allowed, or there is no such thing"
	}
	return wire.Unavailable, "the permission could not be checked; try again"
}

// ask asks Authorize, which may panic, and may take as long as Limits.Authorize.
func (g *Gateway) ask(ctx context.Context, a Access) (grant Grant, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.opts.Limits.Authorize)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			grant, err = Grant{}, fmt.Errorf("gateway: Authorize panicked: %v", p)
			g.log.Error("Authorize panicked", "action", a.Action, "panic", clean(fmt.Sprint(p)))
		}
	}()
	grant, err = g.opts.Authorize(ctx, a)
	if err != nil && !errors.Is(err, ErrForbidden) && !errors.Is(err, ErrUnauthenticated) {
		g.count.authorizeErrors.Add(1)
		g.note(warn, "Authorize failed", "action", a.Action, "user", clean(a.User), "topic", clean(a.Topic), "err", quoted(err.Error(), maxError))
	}
	return grant, err
}

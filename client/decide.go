package client

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/coder/websocket"
)

// A Verdict says what [Sessions] does about an error.
type Verdict int

const (
	// Retry: connect again, after a delay.
	Retry Verdict = iota
	// Refresh: connect again, after a delay, with new credentials. Once: if these are
	// refused as well (before the session is stable or, of a gateway, before its welcome), or
	// if there is no [Options.Prepare] that could get them, it is the same as Final, for all
	// servers. After a session the first attempt with new credentials is made at once, within
	// 100 ms, unless the session was neither stable nor, of a gateway, the first since the last
	// refusal.
	Refresh
	// Final: end the loop; the error is the last one. But if it is the answer of one of
	// several servers (a [*DialError] with a Status), that one is left out until there has
	// been another session, and the others are tried.
	Final
)

// String returns the name in words.
func (v Verdict) String() string {
	switch v {
	case Retry:
		return "retry"
	case Refresh:
		return "refresh"
	case Final:
		return "final"
	}
	return "Verdict(" + strconv.Itoa(int(v)) + ")"
}

// Close codes of a gateway that have a meaning of their own here. Other servers use
// them in the same way, those of GraphQL among them.
const (
	closeBadRequest   = 4400
	closeUnauthorized = 4401
	closeForbidden    = 4403
	closeVersion      = 4406
)

// Decide is what [Sessions] does about errors unless [Options.Decide] is set. The
// rule behind it: final is only what the other side has said on purpose and would say
// again. A client that gives up is noticed by its user, one that tries in vain every half
// a minute by nobody.
//
// Of failed dials (err is or wraps a [*DialError]):
//
//	status of the answer          verdict
//	none: network, DNS, timeout   Retry
//	none: TLS, certificates       Retry: they are renewed, clocks are set, captive portals left
//	none: error of Prepare        Retry
//	101, but not as it should be  Retry: a broken proxy
//	2xx                           Retry: a captive portal
//	3xx                           Final: to another host, from TLS to no TLS, too many
//	401, 403                      Refresh
//	404, 410, 421                 Final; Retry if there was a session before: so proxies
//	                              answer while a server is not registered with them
//	408, 425, 429                 Retry; with 429 after Retry-After
//	426                           Retry: somebody in between; Final if it speaks of WebSocket:
//	                              then a proxy in between does not pass on Upgrade, or
//	                              speaks HTTP/1.0
//	other 4xx                     Final
//	5xx and others                Retry; with 503 after Retry-After
//
// Of sessions that ended (err is what [Session.End] was given, or a [*HeartbeatError]):
//
//	what ended it                       verdict
//	no close frame: network, heartbeat  Retry
//	1000, 1001                          Retry: proxies say so, too, at every deploy
//	1002, 1003, 1007, 1008, 1010        Final: the two do not understand each other
//	1009                                Final: our message was too big, and would be again
//	websocket.ErrMessageTooBig          Final: theirs was, see Options.ReadLimit
//	4400, 4403, 4406                    Final: bad request, forbidden, no common version
//	4401                                Refresh
//	all other codes                     Retry
//
// An [*OptionError] is Final. Decide has no state and may be called by an override for
// whatever that does not decide itself.
func Decide(err error) Verdict {
	var option *OptionError
	if errors.As(err, &option) {
		return Final
	}
	var dial *DialError
	if errors.As(err, &dial) {
		if dial.Status == http.StatusUpgradeRequired && !dial.stripped {
			return Retry
		}
		return decideStatus(dial.Status, dial.everUp)
	}
	if errors.Is(err, websocket.ErrMessageTooBig) {
		return Final
	}
	switch websocket.CloseStatus(err) {
	case websocket.StatusProtocolError, websocket.StatusUnsupportedData, websocket.StatusInvalidFramePayloadData,
		websocket.StatusPolicyViolation, websocket.StatusMessageTooBig, websocket.StatusMandatoryExtension,
		closeBadRequest, closeForbidden, closeVersion:
		return Final
	case closeUnauthorized:
		return Refresh
	}
	return Retry
}

func decideStatus(status int, everUp bool) Verdict {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return Refresh
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return Retry
	case http.StatusNotFound, http.StatusGone, http.StatusMisdirectedRequest:
		if everUp {
			return Retry
		}
	}
	if status >= 300 && status < 500 {
		return Final
	}
	return Retry
}

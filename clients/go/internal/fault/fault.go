// Package fault has what can go wrong, in kinds, since each asks for something else:
//
//	Refusal    the server decided. Its reason is one of the contract's; only LIMIT_EXCEEDED is waited for
//	Trouble    the network, a proxy or a crash: come back, ask how far things are, resume
//	Malformed  a message breaks a rule of the protocol; whoever reads it decides what follows
//	Stop       this client is to end, with an exit code and words for its operator
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Exit codes; the same as those of the Python client.
const (
	Finished         = 0
	Defect           = 1
	BadConfiguration = 2
	BadData          = 3
	Declined         = 4
	Unreachable      = 5
	Untrusted        = 6
	TrainingFailed   = 7
	Replaced         = 8
	HungUp           = 129
	Interrupted      = 130
	Terminated       = 143
)

// Reasons of the contract that this client reacts to by name.
const (
	BodyIncomplete   = "BODY_INCOMPLETE"
	BodyTooLong      = "BODY_TOO_LONG"
	ChecksumMismatch = "CHECKSUM_MISMATCH"
	ChunkTooLarge    = "CHUNK_TOO_LARGE"
	DigestMismatch   = "DIGEST_MISMATCH"
	InvalidManifest  = "INVALID_MANIFEST"
	InvalidRequest   = "INVALID_REQUEST"
	LimitExceeded    = "LIMIT_EXCEEDED"
	ManifestRequired = "MANIFEST_REQUIRED"
	NameMismatch     = "NAME_MISMATCH"
	PermissionDenied = "PERMISSION_DENIED"
	RoundClosed      = "ROUND_CLOSED"
	SchemaMismatch   = "SCHEMA_MISMATCH"
	Superseded       = "SUPERSEDED"
	Unauthenticated  = "UNAUTHENTICATED"
	UnknownModel     = "UNKNOWN_MODEL"
	UnknownUpload    = "UNKNOWN_UPLOAD"
	WrongOffset      = "WRONG_OFFSET"
)

// A Refusal is a decision of the server. RetryAfter is when to come back, for LIMIT_EXCEEDED.
type Refusal struct {
	Reason     string
	Message    string
	Metadata   map[string]string
	RetryAfter time.Duration
}

func (r *Refusal) Error() string { return r.Message }

// Trouble is an error of the network, or of what is taken for one.
type Trouble struct{ Message string }

func (t *Trouble) Error() string { return t.Message }

// Troublef makes Trouble.
func Troublef(format string, values ...any) error { return &Trouble{fmt.Sprintf(format, values...)} }

// Malformed says that a message breaks a rule; Reason is what the contract calls it.
type Malformed struct {
	Reason  string
	Message string
}

func (m *Malformed) Error() string { return m.Message }

// Malformedf makes a Malformed.
func Malformedf(reason, format string, values ...any) error {
	return &Malformed{reason, fmt.Sprintf(format, values...)}
}

// A Stop ends the client.
type Stop struct {
	Code    int
	Message string
}

func (s *Stop) Error() string { return s.Message }

// Stopf makes a Stop.
func Stopf(code int, format string, values ...any) error {
	return &Stop{code, fmt.Sprintf(format, values...)}
}

// NotLetIn ends a client that the server does not take, be that said in a session or while weights travel. The server's
// words often say already what to do.
func NotLetIn(refusal *Refusal) error {
	const advice = "ask the coordinator"
	if strings.Contains(refusal.Message, advice) {
		return Stopf(Untrusted, "%s", refusal.Message)
	}
	return Stopf(Untrusted, "%s: %s", refusal.Message, advice)
}

// Refused gives the Refusal that err is, if it is one for any of these reasons, or for any reason where none is named.
func Refused(err error, reasons ...string) *Refusal {
	var refusal *Refusal
	if !errors.As(err, &refusal) || len(reasons) > 0 && !slices.Contains(reasons, refusal.Reason) {
		return nil
	}
	return refusal
}

// IsTrouble says whether err is Trouble.
func IsTrouble(err error) bool {
	var trouble *Trouble
	return errors.As(err, &trouble)
}

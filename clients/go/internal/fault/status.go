package fault

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	domain       = "fedstream.v1"
	usualDelay   = time.Second
	longestDelay = 24 * time.Hour
)

var plain = map[codes.Code]string{
	codes.Unavailable:      "the server cannot be reached or went away",
	codes.DeadlineExceeded: "the server did not answer in time",
	codes.Unimplemented:    "what answers at this address is no fedstream server",
	codes.Internal:         "the connection broke in the middle of a message",
	codes.Unknown:          "the server had an error of its own",
	codes.Canceled:         "the server or something on the way cut the call",
}

// FromRPC gives what a failed call means: only a decision of the server carries a google.rpc.ErrorInfo of the contract's
// domain. Whatever else is wrong came from the network.
func FromRPC(err error) error {
	if err == nil {
		return nil
	}
	said := status.Convert(err)
	if refusal := readRefusal(said); refusal != nil {
		return refusal
	}
	words, known := plain[said.Code()]
	if !known {
		words = said.Code().String()
	}
	return Troublef("%s (%s)", words, said.Message())
}

func readRefusal(said *status.Status) *Refusal {
	var refusal *Refusal
	delay := usualDelay
	for _, detail := range said.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if refusal == nil && detail.GetDomain() == domain {
				refusal = &Refusal{Reason: detail.GetReason(), Message: said.Message(), Metadata: detail.GetMetadata()}
			}
		case *errdetails.RetryInfo:
			if detail.GetRetryDelay().IsValid() {
				delay = min(max(detail.GetRetryDelay().AsDuration(), 0), longestDelay)
			}
		}
	}
	if refusal != nil {
		refusal.RetryAfter = delay
	}
	return refusal
}

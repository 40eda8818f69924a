// Package session is one stream of the negotiation, from hello to its end.
//
//	greeting --welcome--> member --federation_outcome--> over
//	greeting --schema_query--> greeting    the schema is sent
//	greeting --declined--> over            gives a Stop
//	any --cut--> over                      gives Trouble; the work goes on, and a new session takes it up
//
// Two things go on at a time: what the server says is listened to, and signs of progress keep the lease.
package session

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/link"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/wire"
	"fedstream/client/internal/work"
)

// How long the server may take to end the stream once this client has said its last words.
const lastWords = 3 * time.Second

const (
	// How often the server is told that the final model is still fetched: it leaves after a minute without a message.
	collectingPeriod = 20 * time.Second
	// Stands where an offer's id does in what is told when there are no more.
	noOffer = "final model"
)

// Stream is the negotiation's.
type Stream = link.Stream[pb.NegotiateRequest, pb.NegotiateResponse]

// A Session listens and answers on one stream.
type Session struct {
	Stream    *Stream
	Bench     *work.Bench
	Schema    []model.Spec
	Log       *slog.Logger
	OnWelcome func()
	// Collect fetches the final model while the server is still there.
	Collect func(*pb.FederationOutcome) error

	sending sync.Mutex // guards the stream's sending side: gRPC takes one message at a time

	mu    sync.Mutex
	lease *lease // guarded by mu; of the offer at work
}

// Run says hello and listens to the end; it gives the federation's outcome.
func (s *Session) Run(ctx context.Context, hello *pb.Hello) (*pb.FederationOutcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.Stream.Close()
	context.AfterFunc(ctx, s.Stream.Close)
	err := s.send(&pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Hello{Hello: hello}})
	if err != nil && !errors.Is(err, io.EOF) { // the end is heard below, with its reason
		return nil, err
	}
	heard, kept := make(chan struct{}), make(chan error, 1)
	go func() {
		err := s.keepLease(ctx)
		if err != nil { // it has said good-bye
			select {
			case <-heard:
			case <-time.After(lastWords):
			}
			cancel()
		}
		kept <- err
	}()
	outcome, err := s.listen()
	close(heard)
	cancel()
	if hopeless := <-kept; hopeless != nil {
		return nil, hopeless
	}
	return outcome, err
}

func (s *Session) listen() (*pb.FederationOutcome, error) {
	for {
		message, err := s.Stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil, fault.Troublef("the server ended the session")
		}
		if err != nil {
			return nil, err
		}
		if err := s.handle(message); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if outcome := message.GetFederationOutcome(); outcome != nil {
			return outcome, s.farewell(outcome)
		}
	}
}

// handle takes in one message. A kind that is not known here is ignored. io.EOF says that the stream has ended, of which
// the next message is the reason.
func (s *Session) handle(message *pb.NegotiateResponse) error {
	switch kind := message.GetKind().(type) {
	case *pb.NegotiateResponse_Welcome:
		return s.welcome(kind.Welcome)
	case *pb.NegotiateResponse_Declined:
		return &fault.Stop{Code: fault.Declined, Message: describeDeclined(kind.Declined)}
	case *pb.NegotiateResponse_SchemaQuery:
		return s.sendSchema()
	case *pb.NegotiateResponse_Waiting:
		s.Log.Info("the server is waiting", "reason", kind.Waiting.GetReason())
	case *pb.NegotiateResponse_Offer:
		return s.answer(kind.Offer)
	case *pb.NegotiateResponse_Confirm:
		return s.confirm(kind.Confirm)
	case *pb.NegotiateResponse_Withdraw:
		s.Bench.Withdraw(kind.Withdraw.GetOfferId(), kind.Withdraw.GetReason())
	case *pb.NegotiateResponse_LeaseRenewal:
		s.renew(kind.LeaseRenewal.GetOfferId(), wire.ReadDuration(kind.LeaseRenewal.GetLease()))
	case *pb.NegotiateResponse_Cancel:
		s.Bench.Cancel(kind.Cancel.GetOfferId(), kind.Cancel.GetReason())
	case *pb.NegotiateResponse_RoundOutcome:
		logRound(s.Log, kind.RoundOutcome)
	}
	return nil
}

func (s *Session) welcome(welcome *pb.Welcome) error {
	if welcome.GetProtocol() != limits.Protocol {
		return fault.Stopf(fault.Defect,
			"the server welcomes this client in version %d of the protocol, and it speaks "+
				"%d", welcome.GetProtocol(), limits.Protocol)
	}
	s.Bench.Welcome(readTerms(welcome))
	s.Log.Info("welcome", "known_as", welcome.GetClientName(), "rounds", welcome.GetRounds())
	s.OnWelcome()
	return nil
}

func (s *Session) sendSchema() error {
	for _, part := range wire.SchemaParts(s.Schema) {
		if err := s.send(&pb.NegotiateRequest{Kind: &pb.NegotiateRequest_SchemaPart{SchemaPart: part}}); err != nil {
			return err
		}
	}
	return nil
}

// answer answers an offer. One that cannot be carried out as it stands is declined.
func (s *Session) answer(message *pb.Offer) error {
	offer, err := readOffer(message)
	if err != nil {
		return s.send(decline(message.GetOfferId(), err.Error()))
	}
	reply := s.Bench.Consider(offer)
	switch {
	case reply.Decline != "":
		s.Log.Info("offer", "round", offer.Round, "answer", "decline", "reason", reply.Decline)
		return s.send(decline(offer.ID, reply.Decline))
	case reply.Counter != nil:
		s.Log.Info("offer", "round", offer.Round, "answer", "counter_offer", "epochs", reply.Counter.Epochs,
			"seconds", reply.Counter.Time.Seconds(), "reason", reply.Counter.Reason)
		return s.send(&pb.NegotiateRequest{Kind: &pb.NegotiateRequest_CounterOffer{CounterOffer: &pb.CounterOffer{
			OfferId:    offer.ID,
			Epochs:     reply.Counter.Epochs,
			TimeNeeded: wire.WriteDuration(reply.Counter.Time),
			Reason:     limits.ClipReason(reply.Counter.Reason),
		}}})
	}
	s.Log.Info("offer", "round", offer.Round, "answer", "accept")
	return s.send(&pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Accept{Accept: &pb.Acceptance{OfferId: offer.ID}}})
}

func (s *Session) confirm(confirmation *pb.Confirmation) error {
	if s.Bench.Job(confirmation.GetOfferId()) == nil {
		return nil
	}
	plan, err := wire.ReadPlan(confirmation.GetPlan())
	if err != nil {
		return s.send(failure(confirmation.GetOfferId(), err.Error()))
	}
	s.Bench.Confirm(confirmation.GetOfferId(), plan)
	s.begin(confirmation.GetOfferId(), wire.ReadDuration(confirmation.GetLease()))
	return nil
}

// farewell drops what is under way, fetches the final model, and closes this side.
func (s *Session) farewell(outcome *pb.FederationOutcome) error {
	s.Bench.Close("the federation is over")
	err := s.collect(outcome)
	s.Stream.CloseSend()
	s.awaitEnd()
	return err
}

func (s *Session) collect(outcome *pb.FederationOutcome) error {
	collected, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		s.tellCollecting(collected)
	}()
	err := s.Collect(outcome)
	close(collected)
	<-told // nothing may be sent once this side is closed
	return err
}

// tellCollecting says that the final model is still fetched, as a slow line may take long for it, until that is done.
func (s *Session) tellCollecting(collected <-chan struct{}) {
	ticker := time.NewTicker(collectingPeriod)
	defer ticker.Stop()
	progress := &pb.Progress{OfferId: noOffer, Phase: pb.Phase_PHASE_DOWNLOADING}
	for s.send(&pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Progress{Progress: progress}}) == nil {
		select {
		case <-collected:
			return
		case <-ticker.C:
		}
	}
}

// Leave says good-bye, and waits for the server to end the stream, for a few seconds at most.
func (s *Session) Leave(reason string) {
	leave := &pb.Leave{Reason: limits.ClipReason(reason)}
	if s.send(&pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Leave{Leave: leave}}) == nil {
		s.Stream.CloseSend()
	}
}

func (s *Session) awaitEnd() {
	limit := time.AfterFunc(lastWords, s.Stream.Close)
	defer limit.Stop()
	for {
		if _, err := s.Stream.Receive(); err != nil {
			return
		}
	}
}

func (s *Session) send(message *pb.NegotiateRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.Stream.Send(message)
}

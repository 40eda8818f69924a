package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/token"
)

// Join gets a certificate for a token, and returns what to say to the operator.
//
//	KEY made and kept --> SERVER checked by the token's fingerprint --> ENROL --> certificate checked and KEPT
//
// It may be cut anywhere and done again with the same token: the key is kept before it is used, and the server gives the
// same key the same certificate.
func (f Folder) Join(
	ctx context.Context, invited *token.Token, server, enrolment string, log *slog.Logger,
) (string, error) {
	who := Membership{invited.Name, server}
	if err := f.requireRoom(who); err != nil {
		return "", err
	}
	key, err := f.key()
	if err != nil {
		return "", fault.Stopf(fault.BadConfiguration, "the identity cannot be kept: %v", err)
	}
	answer, err := enrol(ctx, invited, enrolment, key, log)
	if err != nil {
		return "", err
	}
	certificate, authority, err := readAnswer(answer, invited.Name, key)
	if err != nil {
		return "", fault.Stopf(fault.Defect, "the server's answer cannot be used: %v", err)
	}
	if err := f.keep(who, certificate, authority); err != nil {
		return "", fault.Stopf(fault.BadConfiguration, "the identity cannot be kept: %v", err)
	}
	until := certificate.NotAfter.Format(time.DateOnly)
	return fmt.Sprintf("joined as %s; the certificate is valid until %s and renews itself", who.Name, until), nil
}

// requireRoom sees to it that one folder is one site of one federation; it may join that again, with the same key.
func (f Folder) requireRoom(wanted Membership) error {
	known, err := f.Membership()
	if err != nil || known == nil || *known == wanted {
		return err
	}
	return fault.Stopf(fault.BadConfiguration,
		"%s is the identity of %s at %s: give another --identity, or remove it if it is out of "+
			"use", f.Path, known.Name, known.Server)
}

func enrol(
	ctx context.Context, invited *token.Token, enrolment string, key *ecdsa.PrivateKey, log *slog.Logger,
) (*pb.EnrolResponse, error) {
	wish := &x509.CertificateRequest{Subject: pkix.Name{CommonName: invited.Name}}
	request, err := x509.CreateCertificateRequest(rand.Reader, wish, key)
	if err != nil {
		return nil, err
	}
	connection := link.New(enrolment, &link.Trust{Fingerprint: invited.Fingerprint})
	defer connection.Close()
	patience := backoff.Usual
	patience.GiveUpAfter = 30 * time.Second
	try := backoff.Try{Doing: "joining", HowFar: func() int64 { return 0 }, Patience: patience, Log: log}
	var answer *pb.EnrolResponse
	err = try.Until(ctx, func(ctx context.Context) (err error) {
		answer, err = connection.Enrol(ctx, &pb.EnrolRequest{
			ClientName: invited.Name, TokenId: invited.ID, TokenSecret: invited.Secret, CertificateRequest: request,
		})
		return err
	})
	var stop *fault.Stop
	refusal := fault.Refused(err)
	switch {
	case errors.As(err, &stop):
		return nil, fault.Stopf(stop.Code, "%s. Nothing was sent to it", stop.Message)
	case refusal != nil && refusal.Reason == fault.LimitExceeded:
		return nil, fault.Stopf(fault.Unreachable, "the server has no time for this site: %s", refusal.Message)
	case refusal != nil:
		return nil, fault.Stopf(fault.Untrusted, "the server refused (%s): %s", refusal.Reason, refusal.Message)
	case fault.IsTrouble(err):
		return nil, fault.Stopf(fault.Unreachable,
			"cannot join at %s: %v. Nothing is lost: try again with the same token", enrolment, err)
	}
	return answer, err
}

func readAnswer(
	answer *pb.EnrolResponse, name string, key *ecdsa.PrivateKey,
) (certificate, authority *x509.Certificate, err error) {
	if authority, err = x509.ParseCertificate(answer.GetAuthority()); err != nil {
		return nil, nil, err
	}
	certificate, err = readOwn(answer.GetCertificate(), name, key.Public(), authority)
	return certificate, authority, err
}

// readOwn reads a certificate that is to be for that name and key, and signed by that authority.
func readOwn(der []byte, name string, key crypto.PublicKey, authority *x509.Certificate) (*x509.Certificate, error) {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	public, isEC := certificate.PublicKey.(*ecdsa.PublicKey)
	if !isEC || !public.Equal(key) || certificate.Subject.CommonName != name {
		return nil, errors.New("the certificate that came is for another name or key")
	}
	if err := certificate.CheckSignatureFrom(authority); err != nil {
		return nil, fmt.Errorf("the certificate that came is none of the authority that came with it: %w", err)
	}
	return certificate, nil
}
